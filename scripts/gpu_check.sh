#!/usr/bin/env bash
# Measure what a GPU shows: scripts/gpu_check.sh [OUT] [--size tiny|full] [--parts a,b] [--device cpu]
# It takes about 6 minutes on an H200, at most 12.
# Runs with .venv where there is one, else with the python3 that is found, and installs nothing.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

python="$environment/bin/python"
[[ -x "$python" ]] || python=python3
require_libraries "$python"
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 # all that is read comes with the repository
exec "$python" -m llava.bench.gpu_check "$@"
