#!/usr/bin/env bash
# The autoscaling experiment on a laptop: virtual GPUs, each a group of worker processes on the CPU.
#
#   ./autoscale-cpu.sh             check, run, draw the figures
#   ./autoscale-cpu.sh --check     only check, and say what would fail
#   ./autoscale-cpu.sh --dry-run   say, too, what would be run; nothing is done
#   ./autoscale-cpu.sh --rehearse-paper
#                                  run what the paper ran (8 GPUs x 4 workers, 48 clients, 8 minutes) with emulated GPUs:
#                                  nothing is measured, and every file says so. Also with --check and --dry-run
#
# Sets up .venv when first run. Every setting can be given in the environment, as in:
#
#   INTERVAL=1 MAX_MPL=6 N=200 AVAILABLE_GPUS=2 ./autoscale-cpu.sh
#
#   AVAILABLE_GPUS=8            virtual GPUs
#   MAX_MPL_PER_GPU=4           workers of each
#   MIN_MPL=1 MAX_MPL=10        clients at the start and at the end
#   STEP_SIZE=1 INTERVAL=10     clients added at each step, and its length in seconds
#   SHAPE=steps                 updown, bursts:3, trace:FILE; or an open loop: poisson:RATE, constant:RATE, arrivals:FILE
#   OUTER_REPEATS=1             runs of the whole
#   FN=cuda-matmul-cpu          the kernel: a name or a path
#   CLIENT=cuda-matmul-client   the client module
#   N=500                       the client's input: the matrix's size
#   SEGMENTS=fresh              kept: shared memory stays over a client's requests, instead of being new for each
#   KAAS_TRANSPORT=auto         inline: matrices travel in the messages; shm: in shared memory; auto: there if they can
#   PORT=8080                   where the server listens, on this machine only; 0: on any free port
#   MONITOR_MS=250              milliseconds between two samples of the utilization
#   BACKOFF=0.1                 seconds that a client waits after a refusal
#   READY_TIMEOUT=60            seconds that the server has to become ready
#   POLICY=paper                packing: onto the GPU with the most in flight; ahead: the next GPU boots before all are full
#   WHEN_FULL=reject            queue: requests wait when all workers are busy, MAX_QUEUE=1024 of them at most
#   IDLE_TIMEOUT=60             seconds after which an idle task runner is stopped; 0: never
#   CALL_TIMEOUT=0              seconds that a call of the kernel may take; 0: any
#   ENGINE=local                ray: the workers are on the nodes of a Ray that is started for the run, and set up if need be
#   RAY_NODES=1                 with ENGINE=ray: so many nodes, simulated on this machine; they share AVAILABLE_GPUS
#   RAY_ADDRESS=                with ENGINE=ray: HOST:PORT of a Ray that runs, and has virtual GPUs (ray start --num-gpus)
#   LINK_HOST= LINK_PORT=       with ENGINE=ray: where its nodes reach this machine; the port and the two after it
#   TIME_SCALE=1                with --rehearse-paper: so many times as fast
#   CALIBRATION=published       with --rehearse-paper: of GPUs and host, a name that simulate.py knows or a TOML file
#   METRICS_PORT=               where the server serves Prometheus metrics; empty: nowhere
#   MAX_FAILED=0                failed requests (refused ones do not count) beyond which the exit code is 3
#   MAX_LATE=                   seconds by which a step's clients may come late, else the exit code is 3; empty: 0.25 x INTERVAL
#   KEEP_GOING=                 1: go on though nothing is served: all fails, or no GPU is left
#   EXPERIMENT=autoscaling      the results go to results-$EXPERIMENT; an earlier run there is moved aside
#   RESULTS=                    the folder in which that is made; empty: this project's
#   SMOKE=                      1: everything in some 20 s: 2 GPUs, 6 clients, N=200, unless these are set
#   RESUME=                     1: go on with the repeats that the results lack; complete ones stay as they are
#   REPEAT_UNTIL=               "throughput 5%": repeat until the 95 % interval of its mean is +-5 %, OUTER_REPEATS times
#                               at most (20, unless set); if it is wider then, the exit code is 4
#   EXPECT=                     "failed=0, p95<=200ms": else the exit code is 4; the names are those of docs/summary.md
#   DESCRIPTION=...             a sentence for the description of the run
#   KAAS_TOKEN=                 what the run's server wants to see of its clients; drawn afresh for each run
#   KAAS_PYTHON=                a Python that has the libraries, instead of .venv; PYTHON= the one to make .venv with
#
# Ctrl-C once ends in order and keeps the data; twice: at once.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started by another shell
set -euo pipefail
set +o posix # as sh, bash is another one

unset CDPATH
self=${BASH_SOURCE[0]}
while [[ -L $self ]]; do # started through a symbolic link
    link=$(readlink "$self")
    [[ $link == /* ]] || link=$(dirname "$self")/$link
    self=$link
done
ROOT=$(cd "$(dirname "$self")" && pwd)

# shellcheck source=scripts/experiment.sh
source "$ROOT/scripts/experiment.sh"

# shellcheck source=scripts/rehearsal.sh
source "$ROOT/scripts/rehearsal.sh"

options+=' --rehearse-paper'
rehearsing='' arguments=()
for argument in "$@"; do
    if [[ $argument == --rehearse-paper ]]; then rehearsing=yes; else arguments+=("$argument"); fi
done
read_option "$self" ${arguments[@]+"${arguments[@]}"}

preflight_options=--virtual
use_other_defaults
if [[ -n $rehearsing ]]; then
    rehearse
else
    for name in TIME_SCALE CALIBRATION; do
        [[ -z ${!name:-} ]] || fail "$name goes with --rehearse-paper" 2
    done
fi
setting AVAILABLE_GPUS 8
setting MAX_MPL_PER_GPU 4
setting MIN_MPL 1
setting MAX_MPL 10
setting STEP_SIZE 1
setting INTERVAL 10
setting OUTER_REPEATS 1
setting FN cuda-matmul-cpu
setting CLIENT cuda-matmul-client
setting N 500
setting SEGMENTS fresh
setting KAAS_TRANSPORT auto
export SEGMENTS KAAS_TRANSPORT
setting PORT 8080
setting MONITOR_MS 250
setting BACKOFF 0.1
setting READY_TIMEOUT 60
setting EXPERIMENT autoscaling
setting ENGINE local
[[ $ENGINE != ray ]] || setup_options=--ray
setting DESCRIPTION "Autoscaling on a laptop: $AVAILABLE_GPUS virtual GPUs x $MAX_MPL_PER_GPU workers of $FN"

check_engine
[[ -z $asked ]] || look_ahead
run_experiment
