#!/usr/bin/env bash
# Second stage on the first LLaVA's full schedule: three passes over 158k conversations about COCO's images
# (llava_instruct_158k.json of liuhaotian/LLaVA-Instruct-150K), from the projector of v1_5/pretrain.sh.
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.5}"
: "${PROJECTOR=$checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}"
: "${DATA:=$data/llava_instruct_158k.json}"
: "${IMAGES:=$data/coco/train2017}"
: "${OUTPUT:=$checkpoints/llava-v1.5-13b-full-schedule}"
: "${ZERO=${root}scripts/zero2.json}"
: "${EPOCHS:=3}"

launch "${fine_tuning[@]}" "$@"
