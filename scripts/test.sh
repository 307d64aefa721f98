#!/usr/bin/env bash
# Run the tests in .venv, which is made where it is missing: scripts/test.sh [options] [arguments for pytest]
#   --all      the slow tests too (training, whole programs)
#   --oldest   with the oldest supported libraries, in .venv-oldest
#   --newest   with the newest libraries that pyproject.toml allows, in .venv-newest
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

selection=(-m "not slow")
while [[ $# -gt 0 ]]; do
    case "$1" in
        --all) selection=() ;;
        --oldest)
            environment="$repository/.venv-oldest"
            constraints="$(mktemp)"
            trap 'rm -f "$constraints"' EXIT
            sed 's/==.*/==/' "$repository/scripts/constraints-oldest.txt" |
                grep -vFf - "$repository/scripts/constraints.txt" >"$constraints"
            cat "$repository/scripts/constraints-oldest.txt" >>"$constraints"
            ;;
        --newest)
            environment="$repository/.venv-newest"
            constraints=""
            ;;
        *) break ;;
    esac
    shift
done
install_project serve,dev,train,quant,eval
cd "$repository"
say "pytest ${selection[*]+"${selection[*]}"} $*"
"$environment/bin/python" -m pytest ${selection[@]+"${selection[@]}"} "$@"
