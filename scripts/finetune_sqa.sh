#!/usr/bin/env bash
# ScienceQA: twelve passes over its questions with their lectures and solutions. The records:
#   python scripts/convert_sqa_to_llava.py convert_to_llava --base-dir playground/data/eval/scienceqa --split train
# It starts from a projector for that Vicuna:
#   MODEL=lmsys/vicuna-13b-v1.3 OUTPUT=checkpoints/llava-v1.3-13b-pretrain bash scripts/v1_5/pretrain.sh
# The assignments below are defaults of environment variables; --help shows these and all others.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/launch.sh"

: "${MODEL:=lmsys/vicuna-13b-v1.3}"
: "${PROJECTOR=$checkpoints/llava-v1.3-13b-pretrain/mm_projector.bin}"
: "${DATA:=$data/eval/scienceqa/llava_train_QCM-LEA.json}"
: "${IMAGES:=$data/eval/scienceqa/images/train}"
: "${OUTPUT:=$checkpoints/llava-v1.3-13b-sqa}"
: "${ZERO=${root}scripts/zero2.json}"
: "${EPOCHS:=12}"

launch "${fine_tuning[@]}" "$@"
