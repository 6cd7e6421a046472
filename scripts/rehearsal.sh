# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # what experiment.sh and settings.sh have, too
# The paper's run with emulated GPUs: its settings, and the life of the emulator (kaas/emulator.py).
#
# autoscale-cpu.sh sources this.

emulator_pid=''

# What the paper ran, with all times TIME_SCALE times as short. The server, what talks to it and what stops are as here.
rehearse() {
    setting TIME_SCALE 1
    [[ $TIME_SCALE =~ ^[0-9]{1,4}([.][0-9]{1,4})?$ && $TIME_SCALE == *[1-9]* ]] ||
        fail "TIME_SCALE is '$TIME_SCALE': give a number above 0, such as 10" 2
    [[ $TIME_SCALE == 1 || ! ${SHAPE:-} =~ ^(trace|constant|poisson|arrivals): ]] ||
        fail "SHAPE=$SHAPE is in real seconds: it goes with TIME_SCALE=1" 2
    [[ ${ENGINE:-local} == local ]] || fail "--rehearse-paper goes with ENGINE=local" 2
    setting CALIBRATION published
    CALIBRATION=$(absolute "$CALIBRATION")
    setting MAX_MPL 48
    setting INTERVAL "$(scaled 10)"
    setting FN cuda-matmul-emulated
    setting CLIENT cuda-matmul-emulated-client
    setting N 50
    setting MONITOR_MS "$(scaled 100 '%d' 10)"
    setting BACKOFF "$(scaled 0.1)"
    setting IDLE_TIMEOUT "$(scaled 60)"
    setting EXPERIMENT rehearsal
    setting DESCRIPTION "Rehearsal of the paper's run with emulated GPUs, $TIME_SCALE times as fast: not measured"
    monitor_source=emulated
    preflight_options+=' --emulated'
}

# Divide a time by TIME_SCALE, written as printf does, and at least so long.
scaled() {
    LC_ALL=C awk -v time="$1" -v scale="$TIME_SCALE" -v form="${2:-%.6g}" -v least="${3:-0}" \
        'BEGIN { time /= scale; printf form, (time > least ? time : least) }'
}

before_run() {
    [[ $monitor_source == emulated ]] || return 0
    local ready=$folder/.emulator
    "${emulator_command[@]}" --ready "$ready" &
    emulator_pid=$!
    wait_until_ready "$emulator_pid" "$ready" "there is no emulator: see above"
    KAAS_EMULATOR=$(cat "$ready")
    export KAAS_EMULATOR
    rm -f "$ready"
}

after_run() {
    [[ -n $emulator_pid ]] || return 0
    local code=0
    end_within 10 "$emulator_pid" || code=$?
    emulator_pid=''
    unset KAAS_EMULATOR
    [[ $code -eq 0 ]] || say "The emulator ended with exit code $code"
    return "$code"
}
