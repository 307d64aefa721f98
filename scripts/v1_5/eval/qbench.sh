#!/usr/bin/env bash
# qbench.sh [dev|test] [arguments of run.sh behind NAME]; without either word, the split that is in place.
split=""
if [[ "${1:-}" == dev || "${1:-}" == test ]]; then
    split="llvisionqa_$1"
    shift
fi
exec "$(dirname -- "${BASH_SOURCE[0]}")/run.sh" qbench "$@" ${split:+--split "$split"}
