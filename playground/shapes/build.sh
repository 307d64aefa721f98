#!/usr/bin/env bash
# Make the shapes checkpoints from nothing: bash playground/shapes/build.sh --preset small|smoke|full|full-smoke ..., see --help
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../../scripts/environment.sh"
python=python3
if [[ -n "${VIRTUAL_ENV:-}" ]]; then
  python="$VIRTUAL_ENV/bin/python"
elif [[ -x "$environment/bin/python" ]]; then
  python="$environment/bin/python"
fi
require_libraries "$python"
PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m playground.shapes.build "$@"
