"""What is installed: every package with its data, and nothing that belongs to the repository only."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the repository with tests and checkpoints beside the package."""
    copy = tmp_path_factory.mktemp("repository")
    for name in ("pyproject.toml", "README.md", "LICENSE", "DATA_LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "llava", copy / "llava", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "tests/test_x.py",
        "playground/shapes/build.py",
        "playground/shapes/checkpoints/model.safetensors",
    ):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    output = subprocess.run(
        [sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, check=True
    )
    return zipfile.ZipFile(copy / output.stdout.splitlines()[-1])


def test_the_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "llava").rglob("*.py")}
    code = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert code == modules | {"llava/py.typed", "llava/eval/table/rule.json"}


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "llava").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_carries_license_version_and_command(wheel: zipfile.ZipFile):
    def text(name: str) -> str:
        return next(wheel.read(path).decode() for path in wheel.namelist() if path.endswith(name))

    assert "\nVersion: 0.1.0\n" in text("METADATA")
    assert "\nLicense-Expression: Apache-2.0\n" in text("METADATA")
    assert "llava = llava.main:main" in text("entry_points.txt")
    assert text("licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_every_extra_that_a_sentence_names_exists(wheel: zipfile.ZipFile):
    """An error such as "pip install 'llava[quant]'" must not send its reader to what is not there."""
    metadata = next(wheel.read(name).decode() for name in wheel.namelist() if name.endswith("METADATA"))
    named = {
        extra
        for path in [*(ROOT / "llava").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
        for group in re.findall(r"(?:llava|\.)\[([a-z,]+)\]", path.read_text())
        for extra in group.split(",")
    }
    assert named and named <= set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE))


@pytest.mark.slow
def test_importing_any_module_says_and_changes_nothing():
    """Importing does nothing: no output, no log handlers, no open files, wherever it begins."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "llava").rglob("*.py")
        if path.name != "__main__.py"
    )
    program = (
        "import importlib, logging, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "assert not logging.getLogger().handlers, logging.getLogger().handlers\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", program, *modules],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    # Of bitsandbytes, which transformers' Trainer imports where it is there, on CPUs with AVX512-BF16.
    known = "Failed to load CPU gemm_4bit_forward"
    said = [line for line in output.stderr.splitlines() if not line.startswith(known)]
    assert (output.returncode, output.stdout, said) == (0, "", [])
