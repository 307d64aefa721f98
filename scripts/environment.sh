# shellcheck shell=bash
# Sourced by the scripts beside it: make .venv with the standard library's venv and pip, or reuse it.
# Versions are those of constraints.txt, with which the tests have passed.

repository="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
environment="$repository/.venv"
constraints="$repository/scripts/constraints.txt"
# Without an NVIDIA GPU, PyPI's torch for Linux would bring gigabytes of CUDA along; this is the build without it.
cpu_torch="torch==2.13.0"
cpu_torch_index="https://download.pytorch.org/whl/cpu"

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Print the first Python of at least 3.10: $PYTHON if set, else python3, else a numbered one.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python of at least 3.10 found (set PYTHON=/path/to/python3 if it has another name)"
}

# Refuse to go on with a Python $1 that lacks what llava needs; for scripts that install nothing.
require_libraries() {
    "$1" -c "import accelerate, PIL, safetensors, sentencepiece, torch, transformers" >/dev/null 2>&1 ||
        fail "$1 lacks libraries that llava needs: run bash scripts/quickstart.sh, which installs them into .venv"
}

make_environment() {
    local python
    if "$environment/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    python="$(find_python)" || exit
    say "making ${environment##*/} with $("$python" --version)"
    "$python" -m venv --clear "$environment" ||
        fail "$python cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv)"
}

pip_install() {
    local quiet=(--quiet)
    if [[ -t 1 ]]; then quiet=(); fi # progress bars where somebody watches
    "$environment/bin/python" -m pip install --disable-pip-version-check ${quiet[@]+"${quiet[@]}"} "$@"
}

has_package() { "$environment/bin/python" -c "import importlib.metadata as m; m.version('$1')" 2>/dev/null; }

install_cpu_torch() {
    if has_package torch || [[ "$(uname -s)" != Linux ]] || nvidia-smi -L >/dev/null 2>&1; then
        return
    fi
    say "installing $cpu_torch for CPUs"
    # An index or folder configured for pip may hold the CPU build already; PyTorch's own index does.
    pip_install "$cpu_torch+cpu" 2>/dev/null ||
        pip_install --extra-index-url "$cpu_torch_index" "$cpu_torch+cpu" ||
        pip_install "$cpu_torch" ||
        say "no $cpu_torch for this Python; taking another version"
}

# Whether each of the extras $2 ("train,dev", "" for none) is among $1.
covers() {
    local extra
    for extra in ${2//,/ }; do
        [[ ",$1," == *",$extra,"* ]] || return 1
    done
}

# Whether the extras $1 of the project in state $2 were installed before, maybe together with others.
is_installed() {
    local stamp
    [[ -x "$environment/bin/llava" ]] || return 1
    for stamp in "$environment"/installed-*; do
        if [[ -f "$stamp" && "$(<"$stamp")" == "$2" ]] && covers "${stamp##*/installed-}" "$1"; then
            return
        fi
    done
    return 1
}

# Install this repository, editable, with the extras $1 ("train,dev", "" for none) and, beside it, the packages
# that follow; does nothing where that was done before.
install_project() {
    local extras="$1" state project="$repository${1:+[$1]}"
    shift
    make_environment
    # The place matters: an editable install points back to it.
    state="$repository $* $(cat "$repository/pyproject.toml" ${constraints:+"$constraints"} | cksum)"
    if is_installed "$extras" "$state"; then
        say "reusing ${environment##*/}"
        return
    fi
    install_cpu_torch
    say "installing llava${extras:+ with the extras $extras}${1:+ and $*}"
    if [[ -z "$constraints" ]] || ! pip_install --constraint "$constraints" --editable "$project" "$@"; then
        [[ -z "$constraints" ]] || say "the tested versions cannot be installed here; taking those that can"
        pip_install --editable "$project" "$@" || fail "the installation failed; pip's words are above"
    fi
    printf '%s\n' "$state" >"$environment/installed-$extras"
}
