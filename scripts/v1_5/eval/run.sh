#!/usr/bin/env bash
# Run a benchmark: run.sh NAME [id] [model] [results file] [model base] [flags of python -m llava.eval]
# What is left out or empty: the bundled shapes model, an id of the model's name, results/<id>.txt, no base.
# DATA=FOLDER holds the benchmarks (playground/data/eval), RESULTS=FOLDER gets the results (results); GPUS=N
# processes share the questions (visible GPUs).
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/../../evaluate.sh"

given=()
while [[ $# -gt 0 && "$1" != -* ]]; do
    given+=("$1")
    shift
done
name="${given[0]:-}" id="${given[1]:-}" model="${given[2]:-}" results="${given[3]:-}" base="${given[4]:-}"
[[ -n "$name" ]] || fail "no benchmark is named; \`python -m llava.eval list\` prints them"
choose_python
choose_data
evaluate "$name" --data "$DATA" --results-folder "${RESULTS:-${root}results}" ${id:+--id "$id"} ${model:+--model-path "$model"} \
    ${results:+--results-file "$results"} ${base:+--model-base "$base"} "$@"
