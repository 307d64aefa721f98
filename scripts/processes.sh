# shellcheck shell=bash
# Sourced by launch.sh and evaluate.sh: how many processes train, and the command that starts them, on one machine or several.

require_counts() {
    local name
    for name in "$@"; do
        [[ "${!name:-1}" =~ ^[1-9][0-9]{0,8}$ ]] ||
            fail "$name is '${!name}'; accepted: a whole number of at least 1"
    done
}

# The machines and ports of several processes; what is empty is chosen by the launcher.
require_addresses() {
    [[ "$NODE_RANK" =~ ^[0-9]{1,9}$ && $((10#$NODE_RANK)) -lt "$NNODES" ]] ||
        fail "NODE_RANK is '$NODE_RANK'; accepted: 0 to NNODES - 1, which is $((NNODES - 1))"
    NODE_RANK=$((10#$NODE_RANK)) # job systems may write 08, which is no octal number
    [[ "${MASTER_PORT:-1}" =~ ^[1-9][0-9]{0,4}$ && "${MASTER_PORT:-1}" -le 65535 ]] ||
        fail "MASTER_PORT is '$MASTER_PORT'; accepted: a port from 1 to 65535"
    [[ -n "$ZERO" || "$LAUNCHER" != deepspeed ]] ||
        fail "ZERO is empty, so DeepSpeed has nothing to do: set LAUNCHER=torchrun too"
}

# Print how many NVIDIA GPUs may be used; CUDA_VISIBLE_DEVICES hides the others.
count_gpus() {
    local devices
    if [[ "${DS_ACCELERATOR:-}" == cpu ]]; then
        echo 0
    elif [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES#-1}"
        echo "${#devices[@]}"
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU ' || true
    fi
}

# Print the number of processes on all machines of the host file.
count_slots() {
    [[ -f "$HOSTFILE" ]] || fail "no host file '$HOSTFILE' (HOSTFILE)"
    awk -F 'slots=' -v per_machine="$GPUS" '
        !/^[ \t]*#/ && NF > 1 { n += per_machine ? per_machine : $2 }
        END { print n; exit !n }' "$HOSTFILE" ||
        fail "the host file '$HOSTFILE' has no line such as: worker-1 slots=8"
}

# Set `starter`, the command that starts the processes, and `processes`, how many there are on all machines.
choose_starter() {
    visible="$(count_gpus)"
    processes="${GPUS:-$visible}"
    if ((processes == 0)); then processes=1; fi
    case "$LAUNCHER" in
        deepspeed) start_with_deepspeed ;;
        torchrun) start_with_torchrun ;;
        *) fail "LAUNCHER is '$LAUNCHER'; accepted: deepspeed, torchrun" ;;
    esac
    if ((visible == 0)) && [[ -z "$HOSTFILE" ]]; then use_cpu; fi
}

start_with_deepspeed() {
    starter=(deepspeed)
    if [[ -n "$HOSTFILE" ]]; then
        processes="$(count_slots)" || exit
        starter+=(--hostfile "$HOSTFILE" ${GPUS:+--num_gpus "$GPUS"})
    elif ((NNODES > 1)); then
        fail "NNODES is $NNODES, which deepspeed does not read; accepted: HOSTFILE=..., or LAUNCHER=torchrun"
    elif ((visible >= processes)) && [[ -n "${CUDA_VISIBLE_DEVICES:-}" ]]; then
        # Told a number, DeepSpeed takes the machine's first GPUs whatever CUDA_VISIBLE_DEVICES says.
        starter+=(--include "localhost:$(cut -d , -f "1-$processes" <<<"$CUDA_VISIBLE_DEVICES")")
    else
        starter+=(--num_gpus "$processes")
    fi
    starter+=(${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} ${MASTER_PORT:+--master_port "$MASTER_PORT"})
}

start_with_torchrun() {
    [[ -z "$HOSTFILE" ]] || fail "HOSTFILE is '$HOSTFILE', which torchrun does not read; accepted: NNODES=..."
    starter=(torchrun --nproc_per_node "$processes")
    if ((NNODES > 1)); then
        [[ -n "$MASTER_ADDR" ]] || fail "NNODES is $NNODES: give MASTER_ADDR, the address of the first machine"
        starter+=(--nnodes "$NNODES" --node_rank "$NODE_RANK" --master_addr "$MASTER_ADDR")
        starter+=(--master_port "${MASTER_PORT:-29500}")
        processes=$((processes * NNODES))
    elif [[ -n "$MASTER_PORT" ]]; then
        starter+=(--master_port "$MASTER_PORT")
    else
        starter+=(--standalone) # chooses a free port
    fi
}

# DeepSpeed and torch must agree on it; another accelerator than NVIDIA's is named in DS_ACCELERATOR.
use_cpu() {
    export DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"
    if [[ "$DS_ACCELERATOR" == cpu ]]; then
        export CUDA_VISIBLE_DEVICES=""
        say "training on the CPU: no NVIDIA GPU is visible, or DS_ACCELERATOR=cpu"
    fi
}

# Refuse to start more processes than there are GPUs for; a dry run may be about another machine.
check_gpus() {
    ((visible == 0 || ${GPUS:-0} <= visible)) || [[ -n "$HOSTFILE" ]] ||
        fail "GPUS is $GPUS, and $visible can be seen"
}
