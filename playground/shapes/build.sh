#!/usr/bin/env bash
# Make the shapes checkpoints from nothing: bash playground/shapes/build.sh --preset small|smoke|full|full-smoke ..., see --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=python3
if [[ -n "${VIRTUAL_ENV:-}" ]]; then
  python="$VIRTUAL_ENV/bin/python"
elif [[ -x .venv/bin/python ]]; then
  python=.venv/bin/python
fi
exec "$python" -m playground.shapes.build "$@"
