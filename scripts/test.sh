#!/usr/bin/env bash
# Run the tests in .venv, which is made where it is missing: scripts/test.sh [--all] [arguments for pytest]
#   --all   the slow tests too (training, whole programs)
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

selection=(-m "not slow")
if [[ "${1:-}" == --all ]]; then
    selection=()
    shift
fi
install_project serve,dev,train,quant
cd "$repository"
say "pytest ${selection[*]+"${selection[*]}"} $*"
exec "$environment/bin/python" -m pytest ${selection[@]+"${selection[@]}"} "$@"
