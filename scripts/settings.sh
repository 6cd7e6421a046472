# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what experiment.sh and the scripts have, too
# The settings of the autoscale scripts: what the user asks for, what each program is told, and whether it can work.
#
# scripts/experiment.sh sources this. ROOT is the project's folder.

# What a script may be asked for besides a run. What it may set before it asks: `options` more than these, and what its
# preflight is told.
options='--check --dry-run'
preflight_options=''
asked=''  # the one that was
parent='' # where the results' folder is made, if not in the project's
full_folder=''

# Print the comment at the head of a script, if its user asks for help; or note which of the options was given.
read_option() {
    local script=$1
    shift
    [[ $# -gt 0 ]] || return 0
    case $1 in
        --version)
            sed -n "s/^__version__ = \"\(.*\)\"/${script##*/} \1/p" "$ROOT/kaas/__init__.py"
            exit 0
            ;;
        -h | --help)
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
            exit 0
            ;;
        -*)
            [[ " $options " == *" $1 "* ]] || fail "there is no option $1, but $options --help --version" 2
            asked=$1
            shift
            ;;
    esac
    [[ $# -eq 0 ]] ||
        fail "there is no argument such as '$1': settings stand before the command, as in N=200 ./${script##*/}" 2
}

# Give a setting its default, unless the environment has it.
setting() {
    [[ -n ${!1:-} ]] || printf -v "$1" '%s' "$2"
}

# Read a setting that is on or off.
flag() {
    case ${!1:-} in
        '' | 0) printf -v "$1" '%s' '' ;;
        1) ;;
        *) fail "$1 is '${!1}': give 1, or nothing" 2 ;;
    esac
}

# A file named from where the user is keeps its meaning wherever the script goes.
absolute() {
    local file
    for file in "$1" "$1.py"; do
        if [[ -f $file ]]; then
            printf '%s/%s' "$(cd "$(dirname "$file")" && pwd)" "${file##*/}"
            return
        fi
    done
    printf '%s' "$1"
}

go_to_root() {
    if [[ -n ${RESULTS:-} ]]; then
        [[ $RESULTS == /* ]] || RESULTS=$PWD/$RESULTS
        parent=$RESULTS
    fi
    if [[ $PWD != "$ROOT" ]]; then
        FN=$(absolute "$FN")
        CLIENT=$(absolute "$CLIENT")
        cd "$ROOT" || exit
    fi
    [[ -z ${KAAS_PYTHON:-} ]] || command -v "$python" >/dev/null ||
        fail "KAAS_PYTHON is '$python', and there is no such program" 2
}

# Where the results go: as short as can be, and in full.
name_results() {
    wanted=${parent:+${parent%/}/}results-$EXPERIMENT
    full_folder=$wanted
    [[ -n $parent ]] || full_folder=$ROOT/$wanted
}

# What is not set otherwise is another than a script's own default: for SMOKE so small that everything happens in some
# 20 s, and for REPEAT_UNTIL as many repeats as will do, as a rule.
use_other_defaults() {
    [[ -z ${REPEAT_UNTIL:-} ]] || setting OUTER_REPEATS 20
    flag SMOKE
    [[ -n $SMOKE ]] || return 0
    setting AVAILABLE_GPUS 2
    setting MAX_MPL_PER_GPU 2
    setting MAX_MPL 6
    setting INTERVAL 1
    setting OUTER_REPEATS 1
    setting N 200
}

# Hand the settings to a program that reads them in its environment.
export_settings() {
    export AVAILABLE_GPUS MAX_MPL_PER_GPU MIN_MPL MAX_MPL STEP_SIZE INTERVAL OUTER_REPEATS N PORT CLIENT BACKOFF
    export POLICY WHEN_FULL IDLE_TIMEOUT CALL_TIMEOUT
}

# Look at everything that a run needs, and change nothing; it says what it found, and all that would fail.
preflight() {
    # shellcheck disable=SC2086 # options, with spaces between them
    (
        export_settings
        MPS=${MPS:-} SUDO=${SUDO:-} RESULTS=$parent KAAS_PYTHON=$python \
            "$any_python" "$ROOT/scripts/preflight.py" "$self" $preflight_options
    )
}

# Say what a run would need and, if that was asked for, what it would do; and do nothing.
look_ahead() {
    local code=0
    go_to_root
    setting DESCRIPTION none
    preflight || code=$?
    [[ $code -ne 0 ]] || ! command -v "$python" >/dev/null || check_settings
    [[ $asked != --dry-run ]] || tell_plan
    exit "$code"
}

tell_plan() {
    local wanted
    name_results
    folder=$wanted
    flag RESUME
    flag KEEP_GOING
    name_task 1
    [[ ! $PORT =~ ^0+$ ]] || bound_port=PORT
    name_commands
    say "What would be run, in $ROOT:"
    [[ -n ${KAAS_PYTHON:-} || -x $python ]] || tell_command scripts/setup ${setup_options:+"$setup_options"}
    if [[ -d $wanted ]]; then
        if [[ -n $RESUME ]]; then
            say "  what $wanted lacks of the following"
        else
            say "  $wanted is moved aside, to $wanted.<date>-<time>"
        fi
    fi
    [[ ${MPS:-off} == off ]] ||
        say "  scripts/gpu_guard.py sets the GPUs' compute mode, starts MPS, and puts all back as it was found"
    [[ $monitor_source != emulated ]] || tell_command "${emulator_command[@]}"
    tell_command "${server_command[@]}"
    tell_command "${monitor_command[@]}"
    tell_command "${load_command[@]}"
    [[ $OUTER_REPEATS == 1 ]] || say "  the same for the repeats 2 to $OUTER_REPEATS${REPEAT_UNTIL:+, or until: $REPEAT_UNTIL}"
    tell_command scripts/report "$wanted"
    [[ -z ${EXPECT:-} ]] || say "  and see whether $EXPECT"
}

tell_command() {
    local line
    line=$(printf ' %q' "$@")
    say "  ${line# }"
}

# As the original names its tasks: without the ending that only says that the module holds a function.
name_task() {
    local kernel=${FN##*/}
    kernel=${kernel%.py}
    task=$EXPERIMENT-${kernel%-fn}-${N//\//_}-$1
}

# Have each program check what it will be told, before anything is started or moved.
check_settings() {
    local name said
    for name in OUTER_REPEATS AVAILABLE_GPUS MAX_MPL_PER_GPU MIN_MPL MAX_MPL STEP_SIZE MONITOR_MS READY_TIMEOUT; do
        [[ ${!name} =~ ^[1-9][0-9]{0,8}$ ]] || fail "$name is '${!name}': give a whole number of at least 1" 2
    done
    check_engine
    flag RESUME
    flag KEEP_GOING
    EXPECT=${EXPECT:-} REPEAT_UNTIL=${REPEAT_UNTIL:-}
    if [[ -n $EXPECT$REPEAT_UNTIL ]]; then
        said=$("$python" -m kaas.expectations check "$EXPECT" "$REPEAT_UNTIL" 2>&1) || fail "$(in_settings "$said")" 2
    fi
    [[ -z $REPEAT_UNTIL || $OUTER_REPEATS -ge 3 ]] ||
        fail "OUTER_REPEATS is $OUTER_REPEATS: with REPEAT_UNTIL it is the most, so give at least 3" 2
    name_task 1
    [[ ! $PORT =~ ^0+$ ]] || bound_port=1 # none is bound yet, and any is as good for a check
    name_commands
    said=$("${server_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    said=$("${load_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    if [[ $monitor_source == emulated ]]; then
        said=$("${emulator_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    fi
}

check_engine() {
    case ${ENGINE:-local} in
        local) ;;
        ray)
            [[ $monitor_source == cpu ]] || fail "ENGINE=ray is for ./autoscale-cpu.sh: MPS and the monitor know one machine" 2
            [[ -z ${RAY_ADDRESS:-} ]] ||
                fail "RAY_ADDRESS goes with gpu-server-scaling.py --engine ray: the monitor and the matrices know one machine" 2
            ;;
        *) fail "ENGINE is '$ENGINE': give local or ray" 2 ;;
    esac
}

# What a program said of its options, said of the settings that the user typed; all that it said if it is something else.
in_settings() {
    local line
    line=$(printf '%s\n' "$1" | grep -E '^[^ ]*\.py: ' | tail -n 1) || line=$1
    printf '%s\n' "$line" | sed -e 's/^[^ ]*\.py: //' -e 's/^error: //' -e 's/^argument //' -e 's/^-p\///' \
        -e 's/--num-gpus/AVAILABLE_GPUS/g' -e 's/--max-req-per-gpu/MAX_MPL_PER_GPU/g' -e 's/--min-parallel/MIN_MPL/g' \
        -e 's/--max-parallel/MAX_MPL/g' -e 's/--experiment-name/EXPERIMENT/g' -e 's/--input/N/g' -e 's/--client/CLIENT/g' \
        -e 's/--port/PORT/g' -e 's/--policy/POLICY/g' -e 's/--engine ray/ENGINE=ray/g' -e 's/--ray-nodes/RAY_NODES/g' \
        -e 's/--interval/INTERVAL/g' -e 's/--backoff/BACKOFF/g' -e 's/--max-failed/MAX_FAILED/g' \
        -e 's/--max-late/MAX_LATE/g' -e 's/--when-full/WHEN_FULL/g' -e 's/--max-queue/MAX_QUEUE/g' \
        -e 's/--idle-timeout/IDLE_TIMEOUT/g' -e 's/--call-timeout/CALL_TIMEOUT/g' -e 's/--metrics-port/METRICS_PORT/g'
}

name_commands() {
    address=127.0.0.1:${bound_port:-$PORT}
    emulator_command=("$python" simulate.py --num-gpus "$AVAILABLE_GPUS" --calibration "${CALIBRATION:-}" emulate
        --time-scale "${TIME_SCALE:-}" --supervised $$)
    server_command=("$python" gpu-server-scaling.py "$FN" --port "$PORT" --num-gpus "$AVAILABLE_GPUS"
        --max-req-per-gpu "$MAX_MPL_PER_GPU" ${gpu_ids:+--gpu-ids "$gpu_ids"} --supervised $$
        ${POLICY:+--policy "$POLICY"} ${WHEN_FULL:+--when-full "$WHEN_FULL"}
        ${MAX_QUEUE:+--max-queue "$MAX_QUEUE"}
        ${IDLE_TIMEOUT:+--idle-timeout "$IDLE_TIMEOUT"} ${CALL_TIMEOUT:+--call-timeout "$CALL_TIMEOUT"}
        ${METRICS_PORT:+--metrics-port "$METRICS_PORT"} ${ENGINE:+--engine "$ENGINE"} ${RAY_NODES:+--ray-nodes "$RAY_NODES"})
    monitor_command=("$python" gpu-monitor.py "$folder/$task-gpu-monitoring.csv" --source "$monitor_source"
        --interval-ms "$MONITOR_MS" ${gpu_ids:+--gpu-ids "$gpu_ids"} --server "$address" --supervised $$)
    load_command=("$python" load.py --client="$CLIENT" --input="$N" --experiment-name="$EXPERIMENT" --task-name="$task"
        --experiment-description="$DESCRIPTION" ${parent:+--results "$parent"} --min-parallel "$MIN_MPL" --max-parallel "$MAX_MPL"
        --step-size "$STEP_SIZE" --interval="$INTERVAL" --backoff="$BACKOFF" --server "$address" --supervised $$
        ${MAX_FAILED:+--max-failed "$MAX_FAILED"} ${MAX_LATE:+--max-late "$MAX_LATE"} ${KEEP_GOING:+--keep-going})
}
