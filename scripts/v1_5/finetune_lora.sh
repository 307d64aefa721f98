#!/usr/bin/env bash
# LLaVA-1.5, second stage with LoRA: the projector and an adapter of rank 128 learn, from 665k conversations.
# It starts from the projector of pretrain.sh; scripts/merge_lora_weights.py makes a full checkpoint of the result.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-lora}"
: "${LR:=2e-4}"

launch "${fine_tuning[@]}" "${lora[@]}" "$@"
