"""Commands end quietly on Ctrl-C, and work on streams that are closed, full or of few characters."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llava
from llava import terminal

ROOT = Path(llava.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
# A command that prints, reads and opens a file, or fails; as `python -m` would run it.
PROGRAM = """
import os, sys
from llava.errors import UserError
from llava.utils import exit_on_user_error
@exit_on_user_error
def main():
    if "fail" in sys.argv:
        raise UserError("no such thing")
    number = os.open(os.devnull, os.O_RDONLY)
    for _ in range(int(sys.argv[1])):
        print("f\\u00fcnf" if number > 2 else "a file took the place of a stream")
    print("warned", file=sys.stderr)
    print("read", ascii(sys.stdin.readline()))
sys.exit(main())
"""


def run(redirection: str, *arguments: str, stdin: bytes = b"", **environment: str):
    """Run the program in a shell that redirects its streams."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, env={**ENVIRONMENT, **environment}, check=False
    )


@pytest.mark.parametrize(
    ("redirection", "output", "errors"),
    [
        (">&-", "", "warned\n"),
        ("2>&-", "fünf\nread ''\n", ""),
        ("<&-", "fünf\nread ''\n", "warned\n"),
        ("<&- >&- 2>&-", "", ""),
    ],
)
def test_streams_that_are_closed_lead_nowhere(redirection: str, output: str, errors: str):
    done = run(redirection, "1")
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, output, errors)
    failed = run(redirection, "fail")
    assert (failed.returncode, failed.stdout) == (2, b"")
    assert failed.stderr.decode() == ("error: no such thing\n" if errors else "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
@pytest.mark.parametrize("lines", ["1", "100000"])
def test_an_output_that_is_full_is_said_in_one_line(lines: str):
    done = run(">/dev/full", lines)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == (
        "error: the output cannot be written: No space left on device"
    )
    assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_what_standard_error_does_not_take_changes_nothing():
    done = run("2>/dev/full", "1")
    assert (done.returncode, done.stdout.decode()) == (0, "fünf\nread ''\n")
    assert run("2>/dev/full", "fail").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_help_that_cannot_be_written_is_an_error():
    command = ["sh", "-c", f"exec {sys.executable} -m llava.main ask --help >/dev/full"]
    done = subprocess.run(command, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        b"error: the output cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_characters_that_a_terminal_lacks_are_spelled_out(environment: dict[str, str]):
    done = run("", "1", stdin="ä \xff\n".encode(), **environment)
    assert done.returncode == 0
    assert done.stdout.decode() == "f\\u00fcnf\nread '\\xe4 \\xff\\n'\n"


def test_bytes_that_are_no_characters_can_be_read():
    done = run("", "1", stdin=b"a\xff\n", PYTHONUTF8="1")
    assert done.stdout.decode().endswith("read 'a\\udcff\\n'\n")


def test_json_stays_json_on_any_terminal():
    text = "né 你好 👍🏽 \udcff"
    program = (
        "import json; from llava.utils import exit_on_user_error\n"
        "@exit_on_user_error\n"
        f"def main(): print(json.dumps({text!r}, ensure_ascii=False))\n"
        "main()"
    )
    command, environment = [sys.executable, "-c", program], {**os.environ, "PYTHONIOENCODING": "ascii"}
    printed = subprocess.run(command, capture_output=True, env=environment, cwd=ROOT, check=True).stdout
    assert printed.isascii() and json.loads(printed) == text


def interrupt(module: str, *arguments: str) -> tuple[int, str]:
    """Run a command, interrupt it in its imports, and return its exit code and what it said.

    Args:
        module: Whose import the command has finished.
        *arguments: Of the interpreter.
    """
    command = [sys.executable, "-X", "importtime", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, env=ENVIRONMENT
    ) as process:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, b"")
        assert any(line.split()[-1:] == [module.encode()] for line in lines), f"{module} was not imported"
        process.send_signal(signal.SIGINT)
        said = [line.decode() for line in lines if not line.startswith(b"import time:")]
    return process.returncode, "".join(said).strip()


@pytest.mark.parametrize("module", ["llava", "numpy.linalg", "torch.types"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "llava.main", "ask", "What?"),
        ("-m", "llava.serve.cli", "--image", "images/shapes.png"),
        ("-m", "llava.train.train"),
        ("llava/train/train_mem.py",),
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, tuple) else words,
)
def test_an_interrupt_in_the_imports_of_a_command_is_quiet(module: str, arguments: tuple[str, ...]):
    assert interrupt(module, *arguments) == (130, "")


def test_what_bitsandbytes_can_do_without_is_nobodys_business():
    program = (
        "import logging; from llava.utils import exit_on_user_error\n"
        "@exit_on_user_error\n"
        "def main(): logging.getLogger('bitsandbytes.backends').warning('no kernels')\n"
        "main()"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_other_programs_keep_their_signals_and_streams():
    program = (
        "import signal, sys; before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)\n"
        "import llava.utils\n"
        "sys.exit(before != (sys.stdout, sys.stderr, signal.getsignal(signal.SIGINT)))"
    )
    subprocess.run([sys.executable, "-c", program, "-m", "llava.main"], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("-m", ["python", "-m", "llava.main", "ask"], True),
        ("-m", ["python", "-W", "ignore", "-m", "llava.serve.cli"], True),
        ("-m", ["python", "-m", "pytest", "-m", "llava"], False),
        ("-m", ["python", "-mllava.main"], False),  # which works as well, without the comfort
        ("/usr/local/bin/llava", ["python", "/usr/local/bin/llava"], True),
        (str(ROOT / "llava/train/train_mem.py"), ["python", "llava/train/train_mem.py"], True),
        (str(ROOT / "llava-notes/x.py"), ["python", "llava-notes/x.py"], False),
        ("-c", ["python", "-c", "import llava"], False),
        ("", ["python"], False),
    ],
)
def test_commands_are_told_from_other_programs(
    script: str, words: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys, "orig_argv", words)
    assert terminal.runs_a_command() is expected
