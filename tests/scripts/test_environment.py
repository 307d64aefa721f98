"""quickstart.sh and test.sh over a stand-in for Python: what they install, when, and what they reuse."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

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
    assert installs(repository)[-1].endswith(f"--editable {repository}[serve]")
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
    assert installs(repository)[-1].endswith("[serve,dev,train,quant]")


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
    assert installs(moved)[-1].endswith(f"--editable {moved}[serve]")


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
