#!/usr/bin/env bash
# A trained LLaVA-1.5 is fine-tuned further, on data of your own: set DATA and IMAGES.
# All weights but CLIP's learn; with little data, finetune_task_lora.sh is the better choice.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=liuhaotian/llava-v1.5-13b}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-task}"

launch "${fine_tuning[@]}" "$@"
