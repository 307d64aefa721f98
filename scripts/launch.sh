# shellcheck shell=bash
# Sourced by the training recipes: what they share. A recipe gives defaults to variables and calls `launch`.
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname -- "${BASH_SOURCE[0]}")/processes.sh"

# Defaults lie in the repository, wherever the user is; what the user names is relative to where the user is.
root="$repository/"
if [[ . -ef "$repository" ]]; then root=""; fi
data="${root}playground/data"

# shellcheck disable=SC2034 # read by the recipes
{
    checkpoints="${root}checkpoints"
    fine_tuning=(--version v1 --image_aspect_ratio pad --group_by_modality_length True)
    lora=(--lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5)
}

# What a recipe leaves open is as in LLaVA-1.5's second stage. VISION_TOWER, PROJECTOR and ZERO may be empty.
set_defaults() {
    : "${VISION_TOWER=openai/clip-vit-large-patch14-336}" "${PROJECTOR=}"
    : "${DATA:=$data/llava_v1_5_mix665k.json}" "${IMAGES:=$data}" "${LOGS:=${root}logs}"
    : "${BATCH:=16}" "${GLOBAL_BATCH:=128}" "${ACCUMULATION:=}" "${LR:=2e-5}" "${EPOCHS:=1}" "${MAX_LENGTH:=2048}"
    : "${ZERO=${root}scripts/zero3.json}" "${SAVE_STEPS:=50000}" "${WORKERS:=4}" "${REPORT_TO:=none}"
    : "${LAUNCHER:=deepspeed}" "${GPUS:=}" "${HOSTFILE:=}"
    : "${NNODES:=1}" "${NODE_RANK:=0}" "${MASTER_ADDR:=}" "${MASTER_PORT:=}"
}

# Train with the flags $@: the recipe's, then the user's, between which this script's own options may stand.
launch() {
    local argument flags=() finish=run_command
    set_defaults
    for argument in "$@"; do
        case "$argument" in
            --help | -h) show_usage && exit ;;
            --dry-run) finish=show_command ;;
            *) flags+=("$argument") ;;
        esac
    done
    require_counts BATCH GLOBAL_BATCH ACCUMULATION GPUS NNODES
    require_addresses
    choose_starter
    choose_accumulation
    compose_command "${flags[@]}"
    "$finish"
}

# The recipe's header comment, then every variable with its value.
show_usage() {
    local name meaning
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
    printf '%s\n' "" \
        "usage: [VARIABLE=value ...] bash $0 [--dry-run] [--help] [flags of training, which win]" \
        "  --dry-run     print the command instead of running it" \
        "Variables of the environment [their values]:"
    while read -r name meaning; do
        printf '  %-13s %s%s\n' "$name" "$meaning" "${!name:+ [${!name}]}"
    done <<'VARIABLES'
MODEL         what it starts from, a language model or a LLaVA checkpoint: folder or hub id
VISION_TOWER  CLIP: folder or hub id; empty: the one of MODEL
PROJECTOR     mm_projector.bin of a pretraining; empty: the one of MODEL, or a new one
DATA          JSON list of records in LLaVA's format
IMAGES        folder below which the records' images lie
OUTPUT        folder of the result; an interrupted run resumes from the last checkpoint in it
LOGS          folder of the log, which gets what the terminal gets
BATCH         samples per process and step
GLOBAL_BATCH  samples per update of the weights, over all processes
ACCUMULATION  steps per update; by default GLOBAL_BATCH / (BATCH x processes), at least 1
LR            learning rate
EPOCHS        passes over the data
MAX_LENGTH    tokens of a sample; the rest is cut off
SAVE_STEPS    updates between two checkpoints
WORKERS       processes that read data, per training process
REPORT_TO     none, wandb, tensorboard, ...
ZERO          DeepSpeed's configuration; empty: without DeepSpeed (needs LAUNCHER=torchrun)
LAUNCHER      deepspeed or torchrun
GPUS          processes per machine; by default its visible NVIDIA GPUs, or 1 on a CPU
HOSTFILE      deepspeed on several machines: a file with lines such as: worker-1 slots=8
NNODES        torchrun on several machines, started on each of them: how many there are
NODE_RANK     ... which of them this is, from 0
MASTER_ADDR   ... the first one's address
MASTER_PORT   ... a free port of it; also where two trainings share a machine
VARIABLES
    printf '%s\n' "Relative paths are relative to the current folder. DS_ACCELERATOR=cpu trains without GPUs." \
        "Flags of training: python ${root}llava/train/train.py --help"
}

# However many processes there are, an update of the weights sees about as many samples as in the recipe.
choose_accumulation() {
    local samples=$((BATCH * processes))
    if [[ -z "$ACCUMULATION" ]]; then
        ACCUMULATION=$((GLOBAL_BATCH >= samples ? GLOBAL_BATCH / samples : 1))
    fi
    local batch=$((samples * ACCUMULATION)) differs=""
    if ((batch != GLOBAL_BATCH)); then differs=", not GLOBAL_BATCH $GLOBAL_BATCH"; fi
    say "BATCH $BATCH x $processes process(es) x ACCUMULATION $ACCUMULATION = $batch samples per update$differs"
}

# Set `command`: the common flags, then $@; of two equal flags the last one counts.
compose_command() {
    command=(
        "${starter[@]}" "${root}llava/train/train_mem.py" ${ZERO:+--deepspeed "$ZERO"}
        --model_name_or_path "$MODEL" --data_path "$DATA" --image_folder "$IMAGES"
        ${VISION_TOWER:+--vision_tower "$VISION_TOWER"}
        ${PROJECTOR:+--pretrain_mm_mlp_adapter "$PROJECTOR"} --mm_projector_type mlp2x_gelu
        --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False
        --bf16 True --tf32 True --output_dir "$OUTPUT" --num_train_epochs "$EPOCHS"
        --per_device_train_batch_size "$BATCH" --per_device_eval_batch_size 4
        --gradient_accumulation_steps "$ACCUMULATION" --evaluation_strategy no
        --save_strategy steps --save_steps "$SAVE_STEPS" --save_total_limit 1
        --learning_rate "$LR" --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1
        --model_max_length "$MAX_LENGTH" --gradient_checkpointing True --dataloader_num_workers "$WORKERS"
        --lazy_preprocess True --report_to "$REPORT_TO" "$@"
    )
}

# Print the command on one line to paste; plain words stay bare, of which %q alone would escape some.
show_command() {
    local word line=""
    for word in "${command[@]}"; do
        [[ "$word" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || printf -v word %q "$word"
        line+=" $word"
    done
    printf '%s\n' "${line# }"
}

# Run the command, whose exit code is the script's, and log all that it says. A signal to the script, or the end of
# the command by one, ends all of its processes: deepspeed's own end would leave them training.
run_command() {
    local log node=""
    check_gpus
    prefer_environment
    command -v "$LAUNCHER" >/dev/null ||
        fail "$LAUNCHER was not found: pip install 'llava[train]', or choose LAUNCHER=torchrun with an empty ZERO"
    if ((NNODES > 1)); then node="-node$NODE_RANK"; fi
    log="$LOGS/$(basename -- "$0" .sh)-$(date +%Y%m%d-%H%M%S)$node.log"
    { mkdir -p -- "$LOGS" && : >"$log"; } 2>/dev/null || fail "the log '$log' cannot be written (LOGS)"
    exec > >(tee -i -- "$log") 2>&1
    say "$(show_command)"
    export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
    run_group "${command[@]}"
}

# Run $@ as a process group of its own, hand signals on to all of it, and leave nothing of it behind.
run_group() {
    local leader code interrupted=yes signal
    set -m
    "$@" </dev/null &
    leader=$!
    for signal in INT TERM HUP; do
        # shellcheck disable=SC2064 # the numbers are known now
        trap "interrupted=yes; kill -$signal -- -$leader 2>/dev/null || true" "$signal"
    done
    while [[ -n "$interrupted" ]]; do # such a signal ends the waiting, not the command
        interrupted=""
        { wait "$leader" && code=0 || code=$?; } 2>/dev/null
    done
    end_group "$leader"
    exit "$code"
}

# End what is left of the process group $1: in peace at first, by force after half a minute.
end_group() {
    local seconds
    kill -TERM -- "-$1" 2>/dev/null || return 0
    for ((seconds = 0; seconds < 30; seconds++)); do
        sleep 1
        kill -0 -- "-$1" 2>/dev/null || return 0
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

# Take programs from the repository's .venv; an environment that is active comes before it.
prefer_environment() {
    if [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]]; then
        PATH="$PATH:$environment/bin"
    else
        PATH="$environment/bin:$PATH"
    fi
}
