#!/usr/bin/env bash
# The autoscaling experiment on a node with NVIDIA GPUs, as the paper ran it: several workers share each GPU under MPS.
#
#   ./autoscale.sh             check, run, draw the figures
#   ./autoscale.sh --check     only check, and say what would fail
#   ./autoscale.sh --dry-run   say, too, what would be run; nothing is done
#   ./autoscale.sh --restore   put compute modes and MPS back as a run found them that was cut off (power, kill -9)
#
# Sets up .venv when first run. Every setting can be given in the environment:
#
#   AVAILABLE_GPUS=8            GPUs to use; fewer if there are fewer (of those in CUDA_VISIBLE_DEVICES, if it is set)
#   MAX_MPL_PER_GPU=4           workers of each
#   MIN_MPL=1 MAX_MPL=48        clients at the start and at the end
#   STEP_SIZE=1 INTERVAL=10     clients added at each step, and its length in seconds
#   SHAPE=steps                 updown, bursts:3, trace:FILE; or an open loop: poisson:RATE, constant:RATE, arrivals:FILE
#   OUTER_REPEATS=5             runs of the whole
#   FN=cuda-matmul-fn           the kernel: a name or a path
#   CLIENT=cuda-matmul-client   the client module
#   N=10000                     the client's input: the matrix's size
#   SEGMENTS=fresh              kept: shared memory stays over a client's requests, instead of being new for each
#   KAAS_TRANSPORT=auto         inline: matrices travel in the messages; shm: in shared memory; auto: there if they can
#   PORT=8080                   where the server listens, on this machine only; 0: on any free port
#   MPS=on                      off: change no setting of any GPU, and run without MPS
#   SUDO=sudo                   how to become root, for setting the compute mode (empty: not at all; unset if root)
#   KAAS_GPU_STATE=/var/tmp     a folder, kept over a reboot, where what was found on the GPUs is written down meanwhile
#   MONITOR_MS=100              milliseconds between two samples of utilization and power
#   BACKOFF=0.1                 seconds that a client waits after a refusal
#   READY_TIMEOUT=150           seconds that the server has to become ready
#   POLICY=paper                packing: onto the GPU with the most in flight; ahead: the next GPU boots before all are full
#   WHEN_FULL=reject            queue: requests wait when all workers are busy, MAX_QUEUE=1024 of them at most
#   IDLE_TIMEOUT=60             seconds after which an idle task runner is stopped; 0: never
#   CALL_TIMEOUT=0              seconds that a call of the kernel may take; 0: any
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
#   ENGINE=local                ray: the workers are on the nodes of a Ray, which is set up if need be; one is started for
#                               the run on this machine's GPUs, unless RAY_ADDRESS names one
#   RAY_ADDRESS=                with ENGINE=ray: HOST:PORT of a Ray that runs: AVAILABLE_GPUS are of all its nodes
#   RAY_NODES=1                 with ENGINE=ray, without RAY_ADDRESS: so many nodes, simulated; they share the GPUs
#   LINK_HOST= LINK_PORT=       with RAY_ADDRESS: where its nodes reach this machine; the port and the two after it
#   DESCRIPTION=...             a sentence for the description of the run
#   KAAS_TOKEN=                 what the run's server wants to see of its clients; drawn afresh for each run
#   KAAS_PYTHON=                a Python that has the libraries, instead of .venv; PYTHON= the one to make .venv with
#
# Ctrl-C once ends in order and keeps the data; twice: at once. Compute modes and MPS are put back in any case.
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

options+=' --restore'
read_option "$self" "$@"

use_other_defaults
setting AVAILABLE_GPUS 8
setting MAX_MPL_PER_GPU 4
setting MIN_MPL 1
setting MAX_MPL 48
setting STEP_SIZE 1
setting INTERVAL 10
setting OUTER_REPEATS 5
setting FN cuda-matmul-fn
setting CLIENT cuda-matmul-client
setting N 10000
setting SEGMENTS fresh
setting KAAS_TRANSPORT auto
export SEGMENTS KAAS_TRANSPORT
setting PORT 8080
setting MPS on
setting MONITOR_MS 100
setting BACKOFF 0.1
setting READY_TIMEOUT 150
setting EXPERIMENT autoscaling
monitor_source=nvidia-smi
setting ENGINE local
check_engine
[[ $(id -u) -eq 0 ]] || SUDO=${SUDO-sudo}

if [[ -n $RAY_ADDRESS && $MPS != off ]]; then
    agents_hold=yes
    export SUDO=${SUDO:-}
fi
guard_pid='' # of the process that holds the GPUs, and puts them back

before_run() {
    [[ $MPS != off && -z $agents_hold ]] || return 0
    local ready=$folder/.mps-pipe
    # shellcheck disable=SC2086 # UUIDs, with spaces between them
    SUDO=${SUDO:-} "$any_python" scripts/gpu_guard.py hold --supervised $$ --ready "$ready" --logs "$folder" ${gpu_ids//,/ } &
    guard_pid=$!
    wait_until_ready "$guard_pid" "$ready" "the GPUs could not be prepared: see above"
    CUDA_MPS_PIPE_DIRECTORY=$(cat "$ready")
    export CUDA_MPS_PIPE_DIRECTORY
    # What a site sets for a daemon of its own is none of the guard's.
    [[ $CUDA_MPS_PIPE_DIRECTORY != /tmp/kaas-mps.* ]] || unset CUDA_MPS_PROTOCOL_VERSION
    rm -f "$ready"
}

# While the workers are there: prove what they run under, for the description of the run.
after_load() {
    local pids line='off: no setting of any GPU was changed' code=0
    if [[ -n $agents_hold ]]; then
        line="on: $(KAAS_TOKEN=$KAAS_TOKEN "$python" scripts/mps_of_nodes.py "$address")" || code=1
    elif [[ $MPS != off ]]; then
        pids=$(KAAS_TOKEN=$KAAS_TOKEN "$python" -c 'import sys; from kaas.client import Connection
print(*(worker["pid"] for worker in Connection(sys.argv[1]).status()["workers"] if worker["pid"]))' \
            "$address" 2>/dev/null) || pids=''
        # shellcheck disable=SC2086 # process numbers, with spaces between them
        line="on: $("$any_python" scripts/gpu_guard.py proof $pids)" || code=1
    fi
    say "MPS $line"
    describe MPS "$line"
    [[ $code -eq 0 ]] || say "Not every worker ran under MPS: this run does not show what it should"
    return "$code"
}

after_run() {
    [[ -n $guard_pid ]] || return 0
    local pid=$guard_pid
    guard_pid=''
    tell TERM "$pid"
    # It has limits of its own for all that it does, and what it does must not be cut short.
    while is_running "$pid"; do sleep 0.1; done
    wait "$pid"
}

setup_options=--gpu
[[ $ENGINE != ray ]] || setup_options='--gpu --ray'
case $asked in
    '') ;;
    --restore)
        [[ -n $RAY_ADDRESS ]] || SUDO=${SUDO:-} exec "$any_python" "$ROOT/scripts/gpu_guard.py" restore
        go_to_root
        set_up
        find_link_host
        SUDO=${SUDO:-} on_nodes --pass SUDO scripts/gpu_guard.py restore
        exit
        ;;
    *) look_ahead ;;
esac

go_to_root
if [[ -n $RAY_ADDRESS ]]; then
    set_up
    preflight || exit 2
else
    { gpu_ids=$(preflight_options=--list-gpus preflight 2>&3) || exit 2; } 3>&1
    found=$(printf '%s\n' "$gpu_ids" | tr ',' '\n' | wc -l | tr -d ' ')
fi
is_checked=yes
use_found
setting DESCRIPTION "Autoscaling: $AVAILABLE_GPUS GPUs x $MAX_MPL_PER_GPU workers of $FN, MPS $MPS"

run_experiment
