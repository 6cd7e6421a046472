# shellcheck shell=bash
# What the autoscale scripts share: settings, the life of a run's processes, and that nothing but data is left behind.
#
# A script sources this, names its settings with `setting`, and calls `run_experiment`. ROOT is the project's folder.
#
# The server, the monitor and the load generator run with --supervised: they leave Ctrl-C and a terminal's end to this
# script, which ends them in order (load, monitor, server), and they end by themselves, in order too, if it is killed.

# shellcheck source=scripts/settings.sh
source "${BASH_SOURCE[0]%/*}/settings.sh"

# KAAS_PYTHON names a Python that has the libraries, where .venv is not to be set up.
python=${KAAS_PYTHON:-$ROOT/.venv/bin/python}
[[ $python != */* || $python == /* ]] || python=$PWD/$python
# A Python of the user's has the user's settings; ours finds its libraries by itself.
[[ -n ${KAAS_PYTHON:-} ]] || unset PYTHONPATH PYTHONHOME
unset PYTHONSAFEPATH # without this folder's modules nothing runs
any_python=$python # for what needs no library
command -v "$any_python" >/dev/null || any_python=python3

# What a script may set before it calls run_experiment: what scripts/setup is told, where the monitor looks, what CUDA
# calls the GPUs, and functions for the moments before the first repeat, after each load (with the server still there),
# and after all.
setup_options=''
monitor_source=cpu
gpu_ids=''
is_checked='' # whether the script has done the preflight itself, to find GPUs
before_run() { :; }
after_load() { :; }
after_run() { :; }

# Only programs that talk to the server are told its token.
export -n KAAS_TOKEN
unset KAAS_EMULATOR # a rehearsal starts its own

server_pid='' monitor_pid='' load_pid='' # of what runs now
lock='' keeper_pid=''                   # of the results' folder, and of what keeps it, once it is ours
address='' bound_port=''                # where the server listens
events_log=''                           # of a server whose events are not sorted yet
folder=''                               # of the results, once it is ours
complete=' '                            # the repeats that are there already, with spaces around each
interrupted='' signalled=0              # the exit code that a signal asks for; how many came
drawing=''                              # whether all that is left to do is the figures
started_in=$PWD                         # from where the user sees all files

# A terminal that was closed, or a pipe without a reader, takes nothing from the run.
say() {
    printf '%s\n' "$*" 2>/dev/null || true
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2 || true
    exit "${2:-1}"
}

run_experiment() {
    go_to_root
    trap on_exit EXIT
    trap 'on_signal 129' HUP
    trap 'on_signal 130' INT
    trap 'on_signal 143' TERM

    set_up
    draw_token
    check_settings
    if [[ -z $is_checked ]]; then
        preflight || exit 2
        use_found
    fi
    local repeat worst=0 why='' # the exit code of the worst repeat, and what went wrong first
    make_folder
    before_run
    draw_clock

    for ((repeat = 1; repeat <= OUTER_REPEATS; repeat++)); do
        [[ $complete != *" $repeat "* ]] || continue
        ! are_enough "$((repeat - 1))" || break
        run_repeat "$repeat"
    done
    after_run || { worst=1 && blame "what was begun for the run did not end as it should, see above"; }
    if [[ -n $REPEAT_UNTIL && $repeat -gt $OUTER_REPEATS ]] && ! are_enough "$OUTER_REPEATS"; then
        say "OUTER_REPEATS allows no more than these $OUTER_REPEATS repeats"
        [[ $worst -ne 0 ]] || worst=4
    fi
    say "Drawing the figures"
    drawing=yes
    KAAS_FROM=$started_in KAAS_PYTHON=$python scripts/report "$folder"
    drawing=''
    tell_earlier_runs
    see_what_was_expected || worst=$?
    [[ $worst -ne 4 ]] || fail "the run does not keep what EXPECT or REPEAT_UNTIL asks for: see above${why:+; $why}" 4
    [[ $worst -eq 0 ]] || fail "the run was not a clean one: ${why:-see above}" "$worst"
    exit 0
}

# One run of the load, with a server and a monitor of its own.
run_repeat() {
    local code=0
    name_task "$1"
    say "Repeat $1 of $OUTER_REPEATS: $folder/$task"
    start_server
    start_monitor
    run_load || { code=$? && blame "repeat $1: $(what_went_wrong "$code")"; }
    after_load || { code=1 && blame "repeat $1: not all was as it should be after the load, see above"; }
    describe_settings
    stop_monitor
    stop_server || { code=1 && blame "repeat $1: the server did not end as it should, see above"; }
    sort_events || { code=1 && blame "repeat $1: the server's events cannot be sorted, see above"; }
    [[ -z $interrupted ]] ||
        fail "interrupted: what there is so far stays, and scripts/report $full_folder draws it" "$interrupted"
    [[ -s $folder/$task.csv ]] || fail "the load generator could not begin: see above" "$code"
    [[ $code -eq 0 ]] || { worst=$code && describe "Exit code" "$code"; }
    grep -q '^Requests ok: ' "$folder/$task.md" || [[ -n $KEEP_GOING ]] ||
        fail "${why:-no request was served}: what remains is left out, and KEEP_GOING=1 goes on" "$worst"
}

# Keep what went wrong, for the last line; what comes later may come of it.
blame() {
    why=${why:-$1}
}

# Say what went wrong in a load that ended with some exit code, in the load generator's words.
what_went_wrong() {
    local said=''
    [[ ! -e $folder/$task.md ]] || said=$(LC_ALL=C sed -n 's/^Went wrong: //p' "$folder/$task.md" | tail -n 1)
    printf '%s' "${said:-the load generator ended with exit code $1}"
}

# Whether the repeats that are there, so many at most, are all that REPEAT_UNTIL wants; three at least.
are_enough() {
    local code=0
    [[ -n $REPEAT_UNTIL && $1 -ge 3 ]] || return 1
    "$python" -m kaas.analysis.narrow "$folder" "$REPEAT_UNTIL" || code=$?
    [[ $code -eq 0 || $code -eq 3 ]] || fail "whether more repeats are wanted cannot be told: see above"
    return "$code"
}

# Say which of the limits in EXPECT are not kept.
see_what_was_expected() {
    [[ -z $EXPECT ]] || "$python" -m kaas.expectations hold "$folder/summary.json" "$EXPECT"
}

set_up() {
    # shellcheck disable=SC2086 # options, with spaces between them
    [[ -n ${KAAS_PYTHON:-} ]] || "$ROOT/scripts/setup" $setup_options
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

# Be the only run that writes to a folder. What has the lock's file open is all that may: this script and what it
# starts; so the lock ends with the last of them, however they end (kaas/locks.py).
take_folder() {
    local file code=4 other=''
    [[ -z $parent ]] || mkdir -p "$parent" || exit 2
    file=${parent:+${parent%/}/}.results-$EXPERIMENT.lock
    while [[ $code -eq 4 ]]; do # its last holder removes it
        { : >>"$file"; } 2>/dev/null || fail "$file cannot be written in ${parent:-$ROOT}: set RESULTS to a folder of yours"
        exec 9<>"$file"
        code=0
        other=$("$python" -m kaas.locks claim 9 "$file" $$) || code=$?
    done
    case $code in
        0) lock=$file ;;
        3) fail "another run is writing to $full_folder ($other): set EXPERIMENT to another name" 2 ;;
        *) fail "${other:-the lock of $wanted cannot be taken}" ;;
    esac
    "$python" -m kaas.locks keep 9 $$ &
    keeper_pid=$!
}

# Make an empty folder for the results. An earlier run is moved aside, never written over; to resume it, only what is no
# complete repeat is.
make_folder() {
    local wanted aside said
    name_results
    take_folder
    aside=$wanted.$(date -u +%Y%m%d-%H%M%S)
    while [[ -e $aside ]]; do aside=$aside+; done
    if [[ -d $wanted && -n ${RESUME:-} ]]; then
        export_settings
        said=$("$python" -m kaas.resume "$wanted" "${task%-*}" "$aside" 2>&1) || fail "$(in_settings "$said")" 2
        complete="${said##*complete:} "
        said=${said%complete:*}
        worst=${said##*worst: }
        worst=${worst%$'\n'}
        [[ $worst -eq 0 ]] || blame "a repeat that was there was none, as its .md says"
        said=${said%worst:*}
        [[ -z $said ]] || say "${said%$'\n'}"
    elif [[ -d $wanted ]]; then
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
    [[ -n $over_nodes ]] || return 0
    # On several nodes it takes its seconds: the file is there when it looks at all of them.
    while is_running "$monitor_pid" && [[ ! -e $folder/$task-gpu-monitoring.csv ]]; do sleep 0.1; done
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

# Wait until a process that this script has started writes a file, which says that it is ready; fail if it ends before.
wait_until_ready() {
    until [[ -e $2 ]]; do
        is_running "$1" || fail "$3"
        sleep 0.1
    done
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
    # On several nodes its agents end first, and then its part of Ray.
    end_within "$([[ -n $over_nodes ]] && echo 60 || echo 10)" "$monitor_pid" || say "The monitor ended early: the utilization may be incomplete"
    monitor_pid=''
    if [[ -s $monitor_log ]]; then
        say "The monitor reported:"
        head -n 10 "$monitor_log" || true
        describe "Monitor report" "$(tr '\n' ' ' <"$monitor_log")"
    else
        rm -f "$monitor_log"
    fi
}

# Add to the description of the run what the script was told and the programs were not.
describe_settings() {
    local name
    describe "Monitor interval [ms]" "$MONITOR_MS"
    for name in RESULTS SMOKE RESUME REPEAT_UNTIL EXPECT; do
        [[ -z ${!name:-} ]] || describe "$name" "${!name}"
    done
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
    "$python" sortserverlogs.py "$log" "$folder/$task-serverlogs.csv" >/dev/null # it says how many there are
}

# While the load runs it is told, and all else follows when it has ended: in order the first time, at once the second.
on_signal() {
    # Of a terminal that was closed one may be told twice, by the system and by a shell; that is no second order.
    [[ $1 -ne 129 ]] || trap '' HUP
    interrupted=$1
    signalled=$((signalled + 1))
    if [[ -n $load_pid ]]; then
        tell TERM "$load_pid"
    elif [[ -n $drawing ]]; then
        fail "interrupted while the figures were drawn: all data are there, and scripts/report $full_folder draws them" "$1"
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
