#!/usr/bin/env bash
# LLaVA-1.5, first stage: the projector alone learns, from 558k captions.
# LLaVA's own run: 13B, 8 GPUs of 80 GB, 32 samples each. The result is OUTPUT/mm_projector.bin.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.5}"
: "${DATA:=$data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}"
: "${IMAGES:=$data/LLaVA-Pretrain/images}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-pretrain}"
: "${ZERO=${root}scripts/zero2.json}"
: "${BATCH:=32}" "${GLOBAL_BATCH:=256}" "${LR:=1e-3}" "${SAVE_STEPS:=24000}"

launch --version plain --tune_mm_mlp_adapter True "$@"
