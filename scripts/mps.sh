# shellcheck shell=bash
# The life cycle of NVIDIA MPS and of the GPUs' compute mode, for autoscale.sh: as found before is as left after.
#
# Before anything is changed, what was found goes to a state file. restore_gpus puts it back and removes the file; it
# may be called at any time and again. Should even the script be killed, the next start or --restore does it.
#
#   owner PID             the script that changed things
#   mode UUID MODE        the compute mode that a GPU had
#   daemon FOLDER         the control daemon that was started, with its pipe and log in FOLDER
#
# Source: NVIDIA, Multi-Process Service, https://docs.nvidia.com/deploy/mps

gpu_state=$ROOT/.gpu-state-$(hostname)

as_root() {
    # shellcheck disable=SC2086 # a command and its options, such as: sudo -n
    ${SUDO:-} "$@"
}

# Ask the control daemon whose pipe is in a folder. It fails if there is none.
mps_control() {
    printf '%s\n' "$2" | CUDA_MPS_PIPE_DIRECTORY=$1 nvidia-cuda-mps-control 2>/dev/null
}

daemon_answers() {
    mps_control "$1" get_server_list >/dev/null
}

# Wait until a condition holds, 10 seconds at most.
within_limit() {
    local tenths
    for ((tenths = 0; tenths < 100; tenths++)); do
        if "$@"; then return 0; fi
        sleep 0.1
    done
    return 1
}

# Have a number of GPUs, named by UUID, run in exclusive mode under MPS.
start_mps() {
    local uuid mode folder pipe=${CUDA_MPS_PIPE_DIRECTORY:-/tmp/nvidia-mps}
    printf 'owner %s\n' "$$" >"$gpu_state"
    for uuid in "$@"; do
        mode=$(nvidia-smi -i "$uuid" --query-gpu=compute_mode --format=csv,noheader | tail -n 1)
        case $mode in
            Default | Exclusive_Process | Exclusive_Thread | Prohibited)
                printf 'mode %s %s\n' "$uuid" "$(printf '%s' "$mode" | tr '[:lower:]' '[:upper:]')" >>"$gpu_state"
                ;;
            *) fail "GPU $uuid: its compute mode is '$mode', which cannot be put back: run with MPS=off" ;;
        esac
    done
    if daemon_answers "$pipe"; then
        mps_pipe=$pipe
        say "MPS: the control daemon at $pipe was running and is left running"
    else
        # A short path: the daemon's socket in it may have 107 characters.
        folder=$(mktemp -d /tmp/kaas-mps.XXXXXX)
        printf 'daemon %s\n' "$folder" >>"$gpu_state"
    fi
    for uuid in "$@"; do
        as_root nvidia-smi -i "$uuid" -c EXCLUSIVE_PROCESS >/dev/null ||
            fail "GPU $uuid cannot be set to EXCLUSIVE_PROCESS: see above; MPS=off runs without"
    done
    if [[ -z $mps_pipe ]]; then
        mkdir "$folder/pipe" "$folder/log"
        CUDA_MPS_PIPE_DIRECTORY=$folder/pipe CUDA_MPS_LOG_DIRECTORY=$folder/log \
            nvidia-cuda-mps-control -d </dev/null >"$folder/log/start" 2>&1 || true
        within_limit daemon_answers "$folder/pipe" ||
            fail "the MPS control daemon did not start: $(tail -n 1 "$folder/log/start")"
        mps_pipe=$folder/pipe
        export CUDA_MPS_LOG_DIRECTORY=$folder/log
    fi
    export CUDA_MPS_PIPE_DIRECTORY=$mps_pipe
}

# Put back what the state file says was found. It fails, and keeps the file, if something cannot be put back.
restore_gpus() {
    [[ -e $gpu_state ]] || return 0
    local what first second failed=''
    while read -r what first second; do
        case $what in
            daemon) quit_daemon "$first" || failed=1 ;;
            *) ;;
        esac
    done <"$gpu_state"
    while read -r what first second; do
        case $what in
            mode)
                # Nothing in here may read the state file that the loop reads.
                as_root nvidia-smi -i "$first" -c "$second" </dev/null >/dev/null || failed=1
                ;;
            *) ;;
        esac
    done <"$gpu_state"
    if [[ -n $failed ]]; then
        say "Not everything is as it was found: $0 --restore tries again ($gpu_state says what was)"
        return 1
    fi
    rm -f "$gpu_state"
}

quit_daemon() {
    local folder=$1
    [[ $folder == /tmp/kaas-mps.* ]] || return 1
    if daemon_answers "$folder/pipe"; then
        mps_control "$folder/pipe" quit >/dev/null || true
        within_limit daemon_is_gone "$folder/pipe" || {
            say "The MPS control daemon in $folder did not quit"
            return 1
        }
    fi
    rm -rf "$folder"
}

daemon_is_gone() {
    ! daemon_answers "$1"
}

# Put back what a script left that is no more; refuse if it still is there.
restore_after_a_kill() {
    local owner
    [[ -e $gpu_state ]] || return 0 # nothing to put back
    owner=$(sed -n 's/^owner //p' "$gpu_state")
    if [[ -n $owner && $owner != "$$" ]] && kill -0 "$owner" 2>/dev/null; then
        fail "another run (process $owner) is using the GPUs" 2
    fi
    say "Putting the GPUs back as an earlier run, which was killed, had found them"
    restore_gpus
}

# Say how many of the given processes are clients of an MPS server: the proof that workers run under MPS.
mps_proof() {
    local servers server clients='' pid count=0
    servers=$(mps_control "$mps_pipe" get_server_list) || servers=''
    for server in $servers; do
        clients="$clients $(mps_control "$mps_pipe" "get_client_list $server" | tr '\n' ' ')"
    done
    for pid in "$@"; do
        case " $clients " in *" $pid "*) count=$((count + 1)) ;; esac
    done
    printf '%s of %s workers are clients of MPS server %s' "$count" "$#" "${servers:-(none)}"
}
