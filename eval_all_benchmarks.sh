#!/usr/bin/env bash
# Evaluate models on all benchmarks that are in place, and end with one table.
#
#   bash eval_all_benchmarks.sh [MODEL ...] [flags of python -m llava.eval all]
#
# MODEL is a checkpoint's folder or hub id; without one, the bundled shapes model. A run that was interrupted goes
# on where it was. Variables of the environment:
#   TOKEN_REDUCTION  settings to compare, such as "none TRIM:-1"; by default each checkpoint's own
#   MODEL_BASE       base of adapters and projectors
#   DATA             folder of the benchmarks: playground/data/eval, or miniatures if nothing is in it
#   MINIATURES       folder of the miniatures: playground/shapes/build/benchmarks
#   RESULTS          folder of the results: results
#   GPUS             processes that share the questions: the visible GPUs, or 1 on a CPU
#   JUDGE_MODEL      model that scores MM-Vet and LLaVA-Bench, at OPENAI_BASE_URL with OPENAI_API_KEY
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/scripts/evaluate.sh"

# The name of a run: that of the model, of a training's checkpoint with the folder before it, and the reduction,
# behind an @ that no model's name has left.
run_name() {
    local path="${1%/}" name
    name="${path##*/}"
    if [[ "$name" == checkpoint-* && "$path" == */* ]]; then
        path="${path%/*}"
        name="${path##*/}_$name"
    fi
    printf '%s\n' "${name//[^A-Za-z0-9._-]/_}${2:+@${2//[^A-Za-z0-9._-]/_}}"
}

models=()
while [[ $# -gt 0 && "$1" != -* ]]; do
    models+=("$1")
    shift
done
if [[ " $* " == *" --help "* || " $* " == *" -h "* ]]; then
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p;}' "$0"
    exit
fi
if ((${#models[@]} == 0)); then models=("${root}playground/shapes/checkpoints/llava-shapes"); fi
read -ra reductions <<<"${TOKEN_REDUCTION:-}" || true
if ((${#reductions[@]} == 0)); then reductions=(""); fi
choose_python
choose_data
RESULTS="${RESULTS:-${root}results}"
if [[ -e "$DATA/MINIATURE.json" ]]; then RESULTS+="/miniatures"; fi

status=0
ids=()
files=()
begun="$(mktemp)" # results older than this are of other calls
trap 'rm -f -- "$begun"' EXIT
for model in "${models[@]}"; do
    for reduction in "${reductions[@]}"; do
        id="$(run_name "$model" "$reduction")"
        [[ " ${ids[*]+"${ids[*]}"} " != *" $id "* ]] || fail "two models are called $id; evaluate them apart, with --id"
        ids+=("$id")
        say "$id"
        evaluate all --model-path "$model" --data "$DATA" --id "$id" --results-file "$RESULTS/$id.txt" \
            ${MODEL_BASE:+--model-base "$MODEL_BASE"} ${reduction:+--token-reduction "$reduction"} \
            ${JUDGE_MODEL:+--judge-model "$JUDGE_MODEL"} "$@" || status=$?
        while IFS= read -r file; do files+=("$file"); done < <(
            find "$RESULTS/$id" -name '*.json' -newer "$begun" 2>/dev/null
        )
    done
done
if ((${#files[@]})); then evaluate report "${files[@]}" --output "$RESULTS/report"; fi
exit "$status"
