#!/usr/bin/env bash
# Second stage with QLoRA: an adapter of rank 64 learns over a language model that is held in 4 bits.
# Needs bitsandbytes: pip install 'llava[train,quant]'. It starts from the projector of v1_5/pretrain.sh.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-qlora}"
: "${ZERO=${root}scripts/zero2.json}"

launch "${fine_tuning[@]}" --lora_enable True --bits 4 "$@"
