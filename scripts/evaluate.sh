# shellcheck shell=bash
# Sourced by the evaluation scripts: the environment, the data, and one process per GPU.
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
source "$(dirname -- "${BASH_SOURCE[0]}")/processes.sh"

# Defaults lie in the repository, wherever the user is; what the user names is relative to where the user is.
root="$repository/"
if [[ . -ef "$repository" ]]; then root=""; fi

require_counts GPUS # before anything is installed or made

# Run `python -m llava.eval $@`; benchmarks on every visible GPU, or on as many processes as GPUS says.
evaluate() {
    local count
    count="${GPUS:-$(count_gpus)}"
    if [[ "$1" != report ]] && ((count > 1)); then
        run_python -m llava.eval.launch "$count" "$@"
    else
        run_python -m llava.eval "$@"
    fi
}

run_python() { PYTHONPATH="$repository${PYTHONPATH:+:$PYTHONPATH}" "$python" "$@"; }

# Set `python`: of the environment that is active if llava's libraries are in it, else of .venv, made if need be.
choose_python() {
    if [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]] && python3 -c "import torch, transformers" 2>/dev/null; then
        python=python3
    else
        install_project eval
        python="$environment/bin/python"
    fi
}

# Set `DATA` unless the user has: real benchmarks if any are in place, else miniatures, which are made.
choose_data() {
    if [[ -n "${DATA:-}" ]]; then return; fi
    DATA="${root}playground/data/eval"
    if [[ -n "$(ls -- "$DATA" 2>/dev/null)" ]]; then return; fi
    DATA="${MINIATURES:-${root}playground/shapes/build/benchmarks}"
    say "no benchmark is in playground/data/eval (its README says where to get them): running miniatures"
    run_python -m playground.shapes.make_benchmarks --output "$DATA" >&2
}
