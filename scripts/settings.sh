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
agents_hold='' # whether the GPUs are held under MPS by the agents of RAY_ADDRESS
found=''       # how many GPUs there are, once that was asked
over_nodes='' # whether there are several nodes, so that monitor and clients are on each

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
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$script" | as_wide_as_the_terminal
            exit 0
            ;;
        -*)
            [[ " $options " == *" $1 "* ]] ||
                fail "there is no option $1$(nearest_option "$1") There are $options --help --version" 2
            asked=$1
            shift
            ;;
    esac
    [[ $# -eq 0 ]] ||
        fail "there is no argument such as '$1': settings stand before the command, as in N=200 ./${script##*/}" 2
}

# Break lines that the terminal would break in the middle of a word; what describes a setting stays in its column.
as_wide_as_the_terminal() {
    local width=100000
    [[ ! -t 1 ]] || width=$(tput cols 2>/dev/null) || width=80
    awk -v width="$width" '
        length($0) <= width { print; next }
        {
            indent = match($0, /[^ ]  +[^ ]/) && RSTART > 2 ? RSTART + RLENGTH - 2 : match($0, /[^ ]/) - 1
            line = substr($0, 1, indent)
            number = split(substr($0, indent + 1), words, " ")
            for (i = 1; i <= number; i++) {
                if (i > 1 && length(line) + 1 + length(words[i]) > width) {
                    print line
                    line = sprintf("%" indent "s", "")
                    separator = ""
                } else separator = i > 1 ? " " : ""
                line = line separator words[i]
            }
            print line
        }'
}

# End a sentence about an option with the one that begins most like it, if any begins so.
nearest_option() {
    local option length most=2 nearest=.
    for option in $options --help --version; do
        length=0
        while [[ $length -lt ${#option} && ${1:length:1} == "${option:length:1}" ]]; do length=$((length + 1)); done
        if [[ $length -gt $most ]]; then
            most=$length
            nearest=": did you mean $option?"
        fi
    done
    printf '%s' "$nearest"
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
        case ${SHAPE:-} in
            trace:* | arrivals:*) SHAPE=${SHAPE%%:*}:$(absolute "${SHAPE#*:}") ;;
        esac
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

preflight_settings=AVAILABLE_GPUS,MAX_MPL_PER_GPU,MIN_MPL,MAX_MPL,STEP_SIZE,INTERVAL,OUTER_REPEATS,N,PORT,CLIENT,MPS,SUDO,KAAS_TRANSPORT

# Hand the settings to a program that reads them in its environment.
export_settings() {
    export AVAILABLE_GPUS MAX_MPL_PER_GPU MIN_MPL MAX_MPL STEP_SIZE INTERVAL OUTER_REPEATS N PORT CLIENT BACKOFF
    export POLICY WHEN_FULL IDLE_TIMEOUT CALL_TIMEOUT SHAPE ENGINE
    [[ -z ${TIME_SCALE:-} ]] || export TIME_SCALE CALIBRATION
}

# Look at everything that a run needs, and change nothing; it says what it found, and all that would fail. Of RAY_ADDRESS
# each node is asked, and `found` is how many GPUs they have.
preflight() {
    local code=0
    if [[ -z ${RAY_ADDRESS:-} ]]; then
        preflight_here
        return
    fi
    preflight_here --head || code=2
    if ! command -v "$python" >/dev/null; then
        say "  note     nodes: they are asked when Ray is set up here"
        return "$code"
    fi
    find_link_host
    # shellcheck disable=SC2086 # options, with spaces between them
    { found=$(
        export_settings
        MPS=${MPS:-} SUDO=${SUDO:-} \
            on_nodes --count --pass "$preflight_settings" scripts/preflight.py "${self##*/}" $preflight_options --node '{nodes}' 2>&3
    ) || code=2; } 3>&1
    return "$code"
}

preflight_here() {
    # shellcheck disable=SC2086 # options, with spaces between them
    (
        export_settings
        MPS=${MPS:-} SUDO=${SUDO:-} RESULTS=$parent KAAS_PYTHON=$python \
            "$any_python" "$ROOT/scripts/preflight.py" "$self" $preflight_options "$@"
    )
}

# Run one of the project's scripts on each node of RAY_ADDRESS.
on_nodes() {
    "$python" -m kaas.cluster.everywhere --ray-address "$RAY_ADDRESS" ${LINK_HOST:+--link-host "$LINK_HOST"} \
        ${LINK_PORT:+--link-port "$LINK_PORT"} "$@"
}

# Take fewer GPUs where fewer were found.
use_found() {
    if [[ -n $found && $found -lt $AVAILABLE_GPUS ]]; then
        say "Only $found of $AVAILABLE_GPUS GPUs are there: the experiment uses $found"
        AVAILABLE_GPUS=$found
    fi
}

# Say what a run would need and, if that was asked for, what it would do; and do nothing.
look_ahead() {
    local code=0
    go_to_root
    setting DESCRIPTION none
    check_engine
    preflight || code=$?
    [[ $code -ne 0 ]] || use_found
    if [[ $code -eq 0 ]] && command -v "$python" >/dev/null; then
        check_settings
        look_at_resumed
    fi
    [[ $asked != --dry-run ]] || tell_plan
    exit "$code"
}

# Say what a run would go on with, which must have been of the same settings.
look_at_resumed() {
    local wanted said
    flag RESUME
    name_results
    name_task 1
    [[ -n $RESUME && -d $wanted ]] || return 0
    export_settings
    said=$("$python" -m kaas.resume "$wanted" "${task%-*}" 2>&1) || fail "$(in_settings "$said")" 2
    say "  RESUME   ${said%%$'\n'*}"
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
    # shellcheck disable=SC2086 # options, with spaces between them
    [[ -n ${KAAS_PYTHON:-} || -x $python ]] || tell_command scripts/setup $setup_options
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
    find_link_host
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
    # One that is open to the nodes takes a token, which is drawn for a run.
    said=$(KAAS_TOKEN=${KAAS_TOKEN:-drawn} "${server_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    said=$("${load_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    if [[ $monitor_source == emulated ]]; then
        said=$("${emulator_command[@]}" --check 2>&1) || fail "$(in_settings "$said")" 2
    fi
}

# Where the workers are. RAY_ADDRESS is Ray's own variable, too, and says nothing where the engine is not ray.
check_engine() {
    case ${ENGINE:-local} in
        local) RAY_ADDRESS='' ;;
        ray)
            RAY_ADDRESS=${RAY_ADDRESS:-}
            [[ -z $RAY_ADDRESS || $RAY_ADDRESS =~ ^.+:[0-9]+$ ]] || fail "RAY_ADDRESS is '$RAY_ADDRESS': give HOST:PORT of Ray's head" 2
            [[ -z $RAY_ADDRESS && ${RAY_NODES:-1} == 1 ]] || over_nodes=yes
            [[ ${LINK_PORT:-} =~ ^[0-9]{0,5}$ ]] || fail "LINK_PORT is '$LINK_PORT': give a port, and have the next two be free, too" 2
            ;;
        *) fail "ENGINE is '$ENGINE': give local or ray" 2 ;;
    esac
}

# Which address of this machine the nodes of RAY_ADDRESS reach, for the server and its links.
find_link_host() {
    local said
    [[ -n ${RAY_ADDRESS:-} && -z ${LINK_HOST:-} ]] || return 0
    said=$("$python" -m kaas.addresses "$RAY_ADDRESS" 2>&1) || fail "$said" 2
    LINK_HOST=$said
}

# What a program said of its options, said of the settings that the user typed; all that it said if it is something else.
in_settings() {
    local line
    line=$(printf '%s\n' "$1" | grep -E '^[^ ]*\.py: ' | tail -n 1) || line=$1
    printf '%s\n' "$line" | sed -e 's/^[^ ]*\.py: //' -e 's/^error: //' -e 's/^argument //' -e 's/^-p\///' \
        -e 's/--num-gpus/AVAILABLE_GPUS/g' -e 's/--max-req-per-gpu/MAX_MPL_PER_GPU/g' -e 's/--min-parallel/MIN_MPL/g' \
        -e 's/--max-parallel/MAX_MPL/g' -e 's/--experiment-name/EXPERIMENT/g' -e 's/--input/N/g' -e 's/--client/CLIENT/g' \
        -e 's/--port/PORT/g' -e 's/--policy/POLICY/g' -e 's/--shape/SHAPE/g' -e 's/--engine ray/ENGINE=ray/g' \
        -e 's/--ray-nodes/RAY_NODES/g' \
        -e 's/--ray-address/RAY_ADDRESS/g' -e 's/--link-host/LINK_HOST/g' -e 's/--link-port/LINK_PORT/g' \
        -e 's/--interval/INTERVAL/g' -e 's/--backoff/BACKOFF/g' -e 's/--max-failed/MAX_FAILED/g' \
        -e 's/--max-late/MAX_LATE/g' -e 's/--when-full/WHEN_FULL/g' -e 's/--max-queue/MAX_QUEUE/g' \
        -e 's/--idle-timeout/IDLE_TIMEOUT/g' -e 's/--call-timeout/CALL_TIMEOUT/g' -e 's/--metrics-port/METRICS_PORT/g'
}

name_commands() {
    local message_size='' # of a matrix in a message, and a line before it; the server's own is enough for N up to 2896
    if [[ ($KAAS_TRANSPORT == inline || ($KAAS_TRANSPORT == auto && -n $over_nodes)) && $N =~ ^[0-9]{4,7}$ ]] &&
        ((10#$N > 2896)); then
        message_size=$((10#$N * 10#$N * 8 + 200))
    fi
    local host='' monitor_port='' load_port='' # the address of this machine for the nodes, where they are others
    [[ -z ${RAY_ADDRESS:-} ]] || host=${LINK_HOST:-}
    if [[ -n $over_nodes && -n ${LINK_PORT:-} && $LINK_PORT != 0 ]]; then
        monitor_port=$((10#$LINK_PORT + 1)) load_port=$((10#$LINK_PORT + 2))
    fi
    address=${host:-127.0.0.1}:${bound_port:-$PORT}
    [[ $host != *:* ]] || address=[$host]:${bound_port:-$PORT}
    emulator_command=("$python" simulate.py --num-gpus "$AVAILABLE_GPUS" --calibration "${CALIBRATION:-}" emulate
        --time-scale "${TIME_SCALE:-}" --supervised $$)
    server_command=("$python" gpu-server-scaling.py "$FN" --port "$PORT" --num-gpus "$AVAILABLE_GPUS"
        --max-req-per-gpu "$MAX_MPL_PER_GPU" ${gpu_ids:+--gpu-ids "$gpu_ids"} --supervised $$
        ${POLICY:+--policy "$POLICY"} ${WHEN_FULL:+--when-full "$WHEN_FULL"}
        ${MAX_QUEUE:+--max-queue "$MAX_QUEUE"} ${message_size:+--message-size "$message_size"}
        ${IDLE_TIMEOUT:+--idle-timeout "$IDLE_TIMEOUT"} ${CALL_TIMEOUT:+--call-timeout "$CALL_TIMEOUT"}
        ${METRICS_PORT:+--metrics-port "$METRICS_PORT"} ${ENGINE:+--engine "$ENGINE"} ${RAY_NODES:+--ray-nodes "$RAY_NODES"}
        ${RAY_ADDRESS:+--ray-address "$RAY_ADDRESS"} ${host:+--host "$host"} ${agents_hold:+--mps}
        ${LINK_HOST:+--link-host "$LINK_HOST"} ${LINK_PORT:+--link-port "$LINK_PORT"})
    monitor_command=("$python" gpu-monitor.py "$folder/$task-gpu-monitoring.csv" --source "$monitor_source"
        --interval-ms "$MONITOR_MS" --server "$address" --supervised $$)
    load_command=("$python" load.py --client="$CLIENT" --input="$N" --experiment-name="$EXPERIMENT" --task-name="$task"
        --experiment-description="$DESCRIPTION" ${parent:+--results "$parent"} --min-parallel "$MIN_MPL" --max-parallel "$MAX_MPL"
        --step-size "$STEP_SIZE" --interval="$INTERVAL" --backoff="$BACKOFF" --server "$address" --supervised $$
        ${SHAPE:+--shape="$SHAPE"} ${MAX_FAILED:+--max-failed "$MAX_FAILED"} ${MAX_LATE:+--max-late "$MAX_LATE"} ${KEEP_GOING:+--keep-going})
    if [[ -n $over_nodes ]]; then
        monitor_command+=(--engine ray ${host:+--link-host "$host"} ${monitor_port:+--link-port "$monitor_port"})
        # An open loop is sent from one machine.
        [[ ${SHAPE:-} =~ ^(constant|poisson|arrivals): ]] || load_command+=(--engine ray ${host:+--link-host "$host"} ${load_port:+--link-port "$load_port"})
    elif [[ -n $gpu_ids ]]; then
        monitor_command+=(--gpu-ids "$gpu_ids")
    fi
}
