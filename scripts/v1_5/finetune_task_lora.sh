#!/usr/bin/env bash
# A trained LLaVA-1.5 is fine-tuned further with LoRA, on data of your own: set DATA and IMAGES.
# The projector and an adapter of rank 128 learn; scripts/merge_lora_weights.py makes a full checkpoint of the result.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=liuhaotian/llava-v1.5-13b}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-task-lora}"
: "${LR:=2e-4}"

launch "${fine_tuning[@]}" "${lora[@]}" "$@"
