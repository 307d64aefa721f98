#!/usr/bin/env bash
# Second stage with the first LLaVA's adapter: rank 64, alpha 16, one rate for adapter and projector.
# v1_5/finetune_lora.sh is LLaVA-1.5's. It starts from the projector of v1_5/pretrain.sh.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-lora-r64}"
: "${ZERO=${root}scripts/zero2.json}"

launch "${fine_tuning[@]}" --lora_enable True "$@"
