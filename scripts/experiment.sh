# shellcheck shell=bash
# What the autoscale scripts share: settings, the life of a run's processes, and that nothing but data is left behind.
#
# A script sources this, names its settings with `setting`, and calls `run_experiment`. ROOT is the project's folder.
#
# The server, the monitor and the load generator run with --supervised: they leave Ctrl-C and a terminal's end to this
# script, which ends them in order (load, monitor, server), and they end by themselves, in order too, if it is killed.

# KAAS_PYTHON names a Python that has the libraries, where .venv is not to be set up.
python=${KAAS_PYTHON:-$ROOT/.venv/bin/python}
[[ $python != */* || $python == /* ]] || python=$PWD/$python
# A Python of the user's has the user's settings; ours finds its libraries by itself.
[[ -n ${KAAS_PYTHON:-} ]] || unset PYTHONPATH PYTHONHOME
unset PYTHONSAFEPATH # without this folder's modules nothing runs

# What a script may set before it calls run_experiment: what scripts/setup is told, where the monitor looks, what CUDA
# calls the GPUs, and functions for the moments before the first repeat, after each load (with the server still there),
# and after all.
setup_options=''
monitor_source=cpu
gpu_ids=''
before_run() { :; }
after_load() { :; }
after_run() { :; }

# Only programs that talk to the server are told its token.
export -n KAAS_TOKEN

server_pid='' monitor_pid='' load_pid='' # of what runs now
lock='' keeper_pid=''                   # of the results' folder, and of what keeps it, once it is ours
address='' bound_port=''                # where the server listens
events_log=''                           # of a server whose events are not sorted yet
folder=''                               # of the results, once it is ours
interrupted='' signalled=0              # the exit code that a signal asks for; how many came

# A terminal that was closed, or a pipe without a reader, takes nothing from the run.
say() {
    printf '%s\n' "$*" 2>/dev/null || true
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2 || true
    exit "${2:-1}"
}

# Print the comment at the head of a script, if its user asks for help; no other argument is known here.
show_help_if_asked() {
    local script=$1
    shift
    [[ $# -gt 0 ]] || return 0
    if [[ $1 == --version ]]; then
        sed -n "s/^__version__ = \"\(.*\)\"/${script##*/} \1/p" "$ROOT/kaas/__init__.py"
        exit 0
    fi
    case $1 in
        -h | --help) ;;
        -*) fail "there is no option $1; ${script##*/} --help shows what there is" 2 ;;
        *) fail "there is no argument such as '$1': settings stand before the command, as in N=200 ./${script##*/}" 2 ;;
    esac
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script"
    exit 0
}

# Give a setting its default, unless the environment has it.
setting() {
    [[ -n ${!1:-} ]] || printf -v "$1" '%s' "$2"
}

run_experiment() {
    if [[ $PWD != "$ROOT" ]]; then
        FN=$(absolute "$FN")
        CLIENT=$(absolute "$CLIENT")
        cd "$ROOT" || exit
    fi
    trap on_exit EXIT
    trap 'on_signal 129' HUP
    trap 'on_signal 130' INT
    trap 'on_signal 143' TERM

    set_up
    draw_token
    draw_clock
    check_settings
    make_folder
    before_run

    local repeat code worst=0
    for ((repeat = 1; repeat <= OUTER_REPEATS; repeat++)); do
        name_task "$repeat"
        say "Repeat $repeat of $OUTER_REPEATS: $folder/$task"
        start_server
        start_monitor
        code=0
        run_load || code=$?
        after_load || code=1
        describe "Monitor interval [ms]" "$MONITOR_MS"
        stop_monitor
        stop_server || code=1
        sort_events || code=1
        [[ -z $interrupted ]] ||
            fail "interrupted: what there is so far stays, and scripts/report $ROOT/$folder draws it" "$interrupted"
        [[ -s $folder/$task.csv ]] || fail "the load generator could not begin: see above" "$code"
        [[ $code -eq 0 ]] || worst=$code
        grep -q '^Requests ok: ' "$folder/$task.md" || [[ -n ${KEEP_GOING:-} ]] ||
            fail "no request was served, so what remains is left out; KEEP_GOING=1 goes on" "$worst"
    done

    after_run || worst=1
    say "Drawing the figures"
    KAAS_PYTHON=$python scripts/report "$folder"
    tell_earlier_runs
    [[ $worst -eq 0 ]] || fail "the run was not a clean one: see above" "$worst"
    exit 0
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

set_up() {
    # shellcheck disable=SC2086 # options, with spaces between them
    [[ -n ${KAAS_PYTHON:-} ]] || "$ROOT/scripts/setup" $setup_options
    command -v "$python" >/dev/null || fail "KAAS_PYTHON is '$python', and there is no such program" 2
}

# Without it nobody gets an answer from this run's server, other users of this machine included.
draw_token() {
    [[ -n ${KAAS_TOKEN:-} ]] || KAAS_TOKEN=$(od -An -N16 -tx1 /dev/urandom | tr -d '[:space:]')
}

# One clock for all programs and repeats of this run, whatever becomes of the wall clock meanwhile (kaas/clock.py).
draw_clock() {
    KAAS_CLOCK=$("$python" -m kaas.clock)
    export KAAS_CLOCK
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
    name_task 1
    [[ ! $PORT =~ ^0+$ ]] || bound_port=1 # none is bound yet, and any is as good for a check
    name_commands
    said=$("${server_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    said=$("${load_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
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
        -e 's/--port/PORT/g' -e 's/--engine ray/ENGINE=ray/g' -e 's/--ray-nodes/RAY_NODES/g' \
        -e 's/--interval/INTERVAL/g' -e 's/--backoff/BACKOFF/g' -e 's/--max-failed/MAX_FAILED/g' \
        -e 's/--max-late/MAX_LATE/g' -e 's/--when-full/WHEN_FULL/g' -e 's/--max-queue/MAX_QUEUE/g' \
        -e 's/--idle-timeout/IDLE_TIMEOUT/g' -e 's/--call-timeout/CALL_TIMEOUT/g' -e 's/--metrics-port/METRICS_PORT/g'
}

name_commands() {
    address=127.0.0.1:${bound_port:-$PORT}
    server_command=("$python" gpu-server-scaling.py "$FN" --port "$PORT" --num-gpus "$AVAILABLE_GPUS"
        --max-req-per-gpu "$MAX_MPL_PER_GPU" ${gpu_ids:+--gpu-ids "$gpu_ids"} --supervised $$
        ${WHEN_FULL:+--when-full "$WHEN_FULL"} ${MAX_QUEUE:+--max-queue "$MAX_QUEUE"}
        ${IDLE_TIMEOUT:+--idle-timeout "$IDLE_TIMEOUT"} ${CALL_TIMEOUT:+--call-timeout "$CALL_TIMEOUT"}
        ${METRICS_PORT:+--metrics-port "$METRICS_PORT"} ${ENGINE:+--engine "$ENGINE"} ${RAY_NODES:+--ray-nodes "$RAY_NODES"})
    monitor_command=("$python" gpu-monitor.py "$folder/$task-gpu-monitoring.csv" --source "$monitor_source"
        --interval-ms "$MONITOR_MS" ${gpu_ids:+--gpu-ids "$gpu_ids"} --server "$address" --supervised $$)
    load_command=("$python" load.py --client="$CLIENT" --input="$N" --experiment-name="$EXPERIMENT" --task-name="$task"
        --experiment-description="$DESCRIPTION" --min-parallel "$MIN_MPL" --max-parallel "$MAX_MPL"
        --step-size "$STEP_SIZE" --interval="$INTERVAL" --backoff="$BACKOFF" --server "$address" --supervised $$
        ${MAX_FAILED:+--max-failed "$MAX_FAILED"} ${MAX_LATE:+--max-late "$MAX_LATE"} ${KEEP_GOING:+--keep-going})
}

# Be the only run that writes to a folder. What has the lock's file open is all that may: this script and what it
# starts; so the lock ends with the last of them, however they end (kaas/locks.py).
take_folder() {
    local wanted=$1 file=.$1.lock code=4 other=''
    while [[ $code -eq 4 ]]; do # its last holder removes it
        { : >>"$file"; } 2>/dev/null || fail "$file cannot be written in $ROOT: clone the project into a folder of yours"
        exec 9<>"$file"
        code=0
        other=$("$python" -m kaas.locks claim 9 "$file" $$) || code=$?
    done
    case $code in
        0) lock=$file ;;
        3) fail "another run is writing to $ROOT/$wanted ($other): set EXPERIMENT to another name" 2 ;;
        *) fail "${other:-the lock of $wanted cannot be taken}" ;;
    esac
    "$python" -m kaas.locks keep 9 $$ &
    keeper_pid=$!
}

# Make an empty folder for the results. An earlier run is moved aside, never written over.
make_folder() {
    local wanted=results-$EXPERIMENT aside
    take_folder "$wanted"
    if [[ -d $wanted ]]; then
        aside=$wanted.$(date -u +%Y%m%d-%H%M%S)
        while [[ -e $aside ]]; do aside=$aside+; done
        mv "$wanted" "$aside"
        say "The earlier run in $wanted is now in $aside"
    fi
    mkdir -p "$wanted"
    folder=$wanted
}

# What is never written over takes room, until somebody removes it.
tell_earlier_runs() {
    local earlier=("$folder".[0-9]*-[0-9]*) number
    [[ -e ${earlier[0]} ]] || return 0
    number=${#earlier[@]}
    say "Of earlier runs, $number $([[ $number -eq 1 ]] && echo is || echo are) kept ($folder.*):" \
        "$(du -sk "${earlier[@]}" | awk '{ sum += $1 } END { printf "%.1f MB", sum / 1024 }')"
}

start_server() {
    bound_port='' # which it is if any will do, PORT=0
    name_commands
    server_log=$folder/$task-server.log
    events_log=$folder/$task-server-events.log
    # Apart: whatever a kernel prints goes to the former, and must not tear an event's line.
    KAAS_TOKEN=$KAAS_TOKEN "${server_command[@]}" >"$events_log" 2>"$server_log" &
    server_pid=$!
    local tenths=0
    until grep -q ' listening on ' "$server_log" 2>/dev/null; do
        if ! is_running "$server_pid" || ((tenths >= 10 * READY_TIMEOUT)); then
            say "The end of $server_log:"
            tail -n 20 "$server_log" || true
            fail "the server did not become ready"
        fi
        sleep 0.1
        tenths=$((tenths + 1))
    done
    if [[ $PORT =~ ^0+$ ]]; then
        bound_port=$(sed -n 's/.* listening on [^ ]*:\([0-9][0-9]*\):.*/\1/p' "$server_log" | head -n 1)
        name_commands
    fi
}

start_monitor() {
    monitor_log=$folder/$task-monitor.log
    KAAS_TOKEN=$KAAS_TOKEN "${monitor_command[@]}" 2>"$monitor_log" &
    monitor_pid=$!
}

run_load() {
    local code=0
    KAAS_TOKEN=$KAAS_TOKEN "${load_command[@]}" &
    load_pid=$!
    wait_for "$load_pid" || code=$?
    load_pid=''
    return "$code"
}

# Wait for a process to end, whatever signals come meanwhile; return its exit code. From the second signal on it has
# some seconds, and is then killed.
wait_for() {
    local code before
    while [[ $signalled -lt 2 ]]; do
        code=0
        before=$signalled
        wait "$1" || code=$?
        [[ $signalled -ne $before ]] || return "$code"
    done
    end_within 10 "$1"
}

# Whether a process that this script has started still runs. The number of one that has ended may be anybody's by now,
# so it is looked for among the script's own.
is_running() {
    [[ -n $1 && $'\n'$(jobs -r -p)$'\n' == *$'\n'$1$'\n'* ]]
}

# Send a signal to a process that this script has started, if it still runs.
tell() {
    ! is_running "$2" || kill "-$1" "$2" 2>/dev/null || true
}

# Tell a process to end, and kill it if it has not after some seconds; return its exit code.
end_within() {
    local tenths=$((10 * $1)) pid=$2 code=0
    tell TERM "$pid"
    while is_running "$pid"; do
        if ((tenths == 0)); then
            say "Process $pid does not end and is killed"
            tell KILL "$pid"
        fi
        tenths=$((tenths - 1))
        sleep 0.1
    done
    wait "$pid" || code=$?
    return "$code"
}

stop_monitor() {
    [[ -n $monitor_pid ]] || return 0
    end_within 10 "$monitor_pid" || say "The monitor ended early: the utilization may be incomplete"
    monitor_pid=''
    if [[ -s $monitor_log ]]; then
        say "The monitor reported:"
        head -n 10 "$monitor_log" || true
        describe "Monitor report" "$(tr '\n' ' ' <"$monitor_log")"
    else
        rm -f "$monitor_log"
    fi
}

# Add a line to the description of the run, if there is one by now.
describe() {
    [[ ! -e $folder/$task.md ]] || printf '%s: %s\n' "$1" "$2" >>"$folder/$task.md"
}

# Let the server drain and end, and show what went wrong in it; it is an error if it ended in any other way.
stop_server() {
    [[ -n $server_pid ]] || return 0
    local code=0 problems
    # It has limits of its own: 30 s for what is in flight, 10 s for its workers.
    end_within 60 "$server_pid" || code=$?
    server_pid=''
    problems=$(grep -v ' INFO: ' "$server_log") || true
    if [[ -n $problems ]]; then
        say "The server reported ($(printf '%s\n' "$problems" | wc -l | tr -d ' ') lines; all of them are in $server_log):"
        printf '%s\n' "$problems" | head -n 10
    fi
    [[ $code -eq 0 ]] || say "The server ended with exit code $code"
    return "$code"
}

sort_events() {
    [[ -n $events_log ]] || return 0
    local log=$events_log
    events_log=''
    "$python" sortserverlogs.py "$log" "$folder/$task-serverlogs.csv"
}

# While the load runs it is told, and all else follows when it has ended: in order the first time, at once the second.
on_signal() {
    # Of a terminal that was closed one may be told twice, by the system and by a shell; that is no second order.
    [[ $1 -ne 129 ]] || trap '' HUP
    interrupted=$1
    signalled=$((signalled + 1))
    if [[ -n $load_pid ]]; then
        tell TERM "$load_pid"
    else
        say "Interrupted: ending what was started"
        exit "$1"
    fi
}

# Whatever happened: end what still runs, in order, and keep the data.
on_exit() {
    local code=$?
    trap 'tell TERM "${load_pid:-$server_pid}"' INT TERM
    trap '' HUP
    if [[ -n $load_pid ]]; then
        end_within 70 "$load_pid" || true
        load_pid=''
    fi
    stop_monitor || true
    stop_server || true
    sort_events || true
    after_run || code=1
    if [[ -n $lock ]]; then
        tell TERM "$keeper_pid"
        rm -f "$lock"
    fi
    exit "$code"
}
