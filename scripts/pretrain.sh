#!/usr/bin/env bash
# First stage at 7B, as TRIM's repository had it: the projector alone learns, for finetune.sh and
# finetune_8gpu_TRIM.sh. v1_5/pretrain.sh is LLaVA-1.5's own run, at 13B.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL:=lmsys/vicuna-7b-v1.5}"
: "${DATA:=$data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}"
: "${IMAGES:=$data/LLaVA-Pretrain/images}"
: "${OUTPUT:=$checkpoints/llava-v1.5-7b-pretrain}"
: "${ZERO=${root}scripts/zero2.json}"
: "${BATCH:=8}" "${GLOBAL_BATCH:=256}" "${LR:=1e-3}" "${SAVE_STEPS:=24000}"

launch --version plain --tune_mm_mlp_adapter True "$@"
