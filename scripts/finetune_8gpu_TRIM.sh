#!/usr/bin/env bash
# LLaVA-1.5's second stage with TRIM: the model learns to answer from the patches that the question asks about.
# The published run: 7B, 8 GPUs, 4 samples each x accumulation 4. To change the reduction, edit the two lines
# below or set variables of the same names: -1 keeps the patches that stand out, 0.25 a quarter, 64 that many.
# It starts from a projector, liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5 or one of your own:
#   bash scripts/pretrain.sh
# The assignments further down are defaults of environment variables; --help shows these and all others.
chosen_func="${reduce_func:-}" chosen_param="${reduce_func_param:-}"
reduce_func=TRIM
reduce_func_param=-1
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

reduction="${chosen_func:-$reduce_func}:${chosen_param:-$reduce_func_param}"
if [[ "$reduction" == none:* ]]; then reduction=none; fi

: "${MODEL:=lmsys/vicuna-7b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-7b-pretrain/mm_projector.bin}"
: "${OUTPUT:=$checkpoints/finetuned/llava-vicuna-7b-v1.5-${reduction/:/_T}}"
: "${BATCH:=4}" "${SAVE_STEPS:=5000}"

launch "${fine_tuning[@]}" --mm_vision_token_reduce_func "$reduction" "$@"
