#!/usr/bin/env bash
# LLaVA-1.5, second stage: projector and language model learn, from 665k conversations.
# LLaVA's own run: 13B, 8 GPUs of 80 GB, 16 samples each. It starts from the projector of pretrain.sh.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b}"

launch "${fine_tuning[@]}" "$@"
