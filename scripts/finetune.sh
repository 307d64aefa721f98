#!/usr/bin/env bash
# Second stage at 7B, as TRIM's repository had it, without a reduction: all but CLIP learns, from the projector of
# pretrain.sh. v1_5/finetune.sh is LLaVA-1.5's own run, at 13B; finetune_8gpu_TRIM.sh trains with TRIM.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL:=lmsys/vicuna-7b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-7b-pretrain/mm_projector.bin}"
: "${OUTPUT:=$checkpoints/llava-v1.5-7b}"
: "${BATCH:=4}"

launch "${fine_tuning[@]}" "$@"
