#!/usr/bin/env bash
# Measure what a GPU shows, in at most 8 minutes: scripts/gpu_check.sh [OUT] [--size tiny|full] [--parts a,b] [--device cpu]
# Runs with .venv where there is one, else with the python3 that is found, and installs nothing.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

python="$environment/bin/python"
[[ -x "$python" ]] || python=python3
require_libraries "$python"
export PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 # all that is read comes with the repository
exec "$python" -m llava.bench.gpu_check "$@"
