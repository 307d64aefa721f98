"""Errors of users are one line and an exit code; logging speaks once per run."""

import asyncio
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from llava.errors import MissingFileError, UserError
from llava.utils import (
    build_logger,
    exit_on_user_error,
    pretty_print_semaphore,
    printable,
    refuse_overwriting,
    setup_logging,
)


def test_a_missing_file_is_a_user_error_and_a_missing_file():
    error = MissingFileError("there is no file x")
    assert (
        isinstance(error, UserError)
        and isinstance(error, ValueError)
        and isinstance(error, FileNotFoundError)
    )
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "there is no file x"


def test_a_user_error_becomes_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main():
        raise UserError("no such\n  thing")

    assert main() == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_an_error_quotes_no_endless_word(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main(length: int):
        raise UserError(f"there is no file {'x' * length} here")

    assert main(300) == main(5000) == 2
    short, long = capsys.readouterr().err.splitlines()
    assert short == f"error: there is no file {'x' * 300} here"
    assert long == f"error: there is no file {'x' * 200}... here"


def test_exit_codes_pass_through():
    assert exit_on_user_error(lambda: None)() == 0
    assert exit_on_user_error(lambda: 3)() == 3


def test_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]):
    @exit_on_user_error
    def main():
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "\n"


def test_other_errors_keep_their_traceback():
    @exit_on_user_error
    def main():
        raise ValueError("a mistake of the program")

    with pytest.raises(ValueError, match="a mistake"):
        main()


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_error(lines: int):
    program = (
        "import sys\n"
        "from llava.utils import exit_on_user_error\n"
        "@exit_on_user_error\n"
        "def main():\n"
        f"    for _ in range({lines}): print('line')\n"
        "sys.exit(main())\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")


@pytest.mark.parametrize(("rank", "level"), [("0", logging.INFO), ("1", logging.WARNING)])
def test_logging_is_quieter_on_other_processes(rank: str, level: int, monkeypatch: pytest.MonkeyPatch):
    asked = {}
    monkeypatch.setattr(logging, "basicConfig", lambda **settings: asked.update(settings))
    monkeypatch.setenv("RANK", rank)
    setup_logging()
    assert asked["level"] == level


def test_what_a_terminal_would_act_on_is_spelled_out(capsys: pytest.CaptureFixture[str]):
    assert printable("Ünïcode 你好 👍🏽\n\tindented") == "Ünïcode 你好 👍🏽\n\tindented"
    assert printable("\x1b[2J\r\x07\x9b31m") == "\\x1b[2J\\r\\x07\\x9b31m"
    assert printable("gpj.\u202exe") == "gpj.\\u202exe"
    assert printable(os.fsdecode(b"\xff.png")) == "\\udcff.png"

    @exit_on_user_error
    def main():
        logging.getLogger("llava.test").warning("weights %s", "\x1b[2J")
        raise UserError("no file \x1b]0;title\x07.png")

    assert main() == 2
    assert "\x1b" not in capsys.readouterr().err


def test_warnings_and_log_lines_are_printable_too():
    program = (
        "import logging; from llava.utils import exit_on_user_error, setup_logging\n"
        "@exit_on_user_error\n"
        "def main():\n"
        "    logging.getLogger('a').warning('before %s', '\\x1b[2J')\n"
        "    setup_logging()\n"
        "    logging.getLogger('a').warning('after %s', '\\x1b[2J')\n"
        "main()"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert "before \\x1b[2J" in shown
    assert "after \\x1b[2J" in shown
    assert "\x1b" not in shown


def test_no_output_is_written_over_an_input(tmp_path: Path):
    source, link = tmp_path / "photo.png", tmp_path / "link.png"
    source.write_bytes(b"photo")
    link.symlink_to(source)
    refuse_overwriting("--out", tmp_path / "other.png", source)
    refuse_overwriting("--out", None, source)
    refuse_overwriting("--out", source, "https://example.org/photo.png", tmp_path / "missing.png", None)
    for output in (source, link):
        with pytest.raises(UserError, match=r"--out .* would overwrite .*photo\.png"):
            refuse_overwriting("--out", output, source)


def test_a_logger_of_llavas_servers_writes_to_a_file_of_the_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("llava.utils.LOGDIR", str(tmp_path / "logs"))
    for message in ("first", "second"):
        build_logger("controller", "controller.log").info(message)
    logger = logging.getLogger("controller")
    lines = (tmp_path / "logs" / "controller.log").read_text().splitlines()
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    assert [line.split()[-1] for line in lines] == ["first", "second"]


def test_a_semaphore_is_described():
    semaphore = asyncio.Semaphore(2)
    assert pretty_print_semaphore(None) == "None"
    assert pretty_print_semaphore(semaphore) == "Semaphore(value=2, locked=False)"
