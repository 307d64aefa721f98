"""What every command needs around its work: rank-aware logging and one-line errors.

Importing this module does nothing.
"""

import functools
import logging
import os
import re
import sys
from collections.abc import Callable
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from llava.constants import LOGDIR
from llava.errors import UserError
from llava.terminal import INTERRUPTED_EXIT_CODE, OutputError, flush_output, interruptible, prepare_terminal

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

USER_ERROR_EXIT_CODE = 2

HALF_PAIR = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: what JSON may write, and what Python makes of bytes that are not UTF-8. It is no
character, and tokenizers fail on it."""

# Control characters but line feed and tab, marks that turn the direction of text around, and halves of
# characters, which no terminal can show.
_ACTING_ON_TERMINALS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# What is left out of an error that quotes a word, such as a path, of more than 300 characters.
_LONG_WORD = re.compile(r"(?<=\S{200})\S{101,}")


def process_rank() -> int:
    """Rank of this process among those that launched together; 0 when it runs alone."""
    return int(os.environ.get("RANK", "0"))


def on_first_process(work: Callable[[], _Result]) -> _Result:
    """Do something in the first process of a launch, and return in all of them what came of it.

    Args:
        work: Returns what can be sent between processes.

    Raises:
        UserError: In all of them, if it is raised in the first.
    """
    from torch import distributed

    outcome: list[Any] = [None, None]
    if process_rank() == 0:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = str(error)
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]


def printable(text: str) -> str:
    """Return a text as it may be shown on a terminal: names of files and answers of models may hold anything.

    What a terminal would act on is spelled out, as Python spells it in a string.
    """
    return _ACTING_ON_TERMINALS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def printable_json(text: str) -> str:
    """Return JSON that means the same and may be shown on a terminal; see `printable`."""
    return _ACTING_ON_TERMINALS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def check_characters(text: str, name: str) -> None:
    """Refuse a text that no tokenizer reads.

    Args:
        text: What was written.
        name: What the error calls it.

    Raises:
        UserError: If it holds something that is no character.
    """
    if half := HALF_PAIR.search(text):
        raise UserError(
            f"{name} holds {half[0]!r}, which is no character: a byte that is not UTF-8, or half of a "
            "surrogate pair"
        )


class _PrintableFormatter(logging.Formatter):
    """Formats log records for a terminal; see `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def refuse_overwriting(option: str, output: Path | None, *inputs: str | Path | None) -> None:
    """Refuse to write a file over one that is read, or into a folder that is read.

    Args:
        option: What names the output on the command line.
        output: File or folder to write, if any.
        *inputs: Files and folders that are read; URLs, ids and what is missing are none.

    Raises:
        UserError: If the output is one of them, also by way of a link.
    """
    if output is None or not output.exists():
        return
    for source in inputs:
        if source is not None and Path(source).exists() and output.samefile(source):
            kind = "folder" if output.is_dir() else "file"
            raise UserError(f"{option} {output} would overwrite {source}, which is read; name another {kind}")


def setup_logging(level: int = logging.INFO) -> None:
    """Send log records to stderr, informational ones on the first process only; for mains, never for modules.

    Args:
        level: Lowest level shown on the first process; the others show warnings and errors.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    )
    logging.basicConfig(
        level=level if process_rank() == 0 else max(level, logging.WARNING), handlers=[handler]
    )


def error_line(error: Exception) -> str:
    """Return how an error is reported: one line, also where it quotes many lines or endless words."""
    return printable(f"error: {_LONG_WORD.sub('...', ' '.join(str(error).split()))}")


def exit_on_user_error(command: Callable[_Parameters, int | None]) -> Callable[_Parameters, int]:
    """Turn a command's main into one that reports a user's mistake in one line instead of a traceback.

    Args:
        command: A main function; it may return an exit code, ``None`` meaning 0.

    Returns:
        The same function, always returning an exit code: 2 after ``error: <sentence>`` on stderr, 130 when
        interrupted.
    """

    @functools.wraps(command)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> int:
        if command.__module__ == "__main__":
            prepare_terminal()
        if logging.lastResort is not None:  # shows warnings of commands that set up no logging
            logging.lastResort.setFormatter(_PrintableFormatter("%(message)s"))
        try:
            with interruptible():
                code = command(*args, **kwargs) or 0
                flush_output()  # so that what cannot be written is noticed here
                return code
        except (UserError, OutputError) as error:
            if isinstance(error, OutputError) and error.reader_left:
                return 0
            print(error_line(error), file=sys.stderr)
            return USER_ERROR_EXIT_CODE
        except KeyboardInterrupt:
            print(file=sys.stderr)
            return INTERRUPTED_EXIT_CODE

    return wrapped


def disable_torch_init() -> None:
    """Do nothing, under the name that code written for LLaVA calls before it loads a model.

    There it turned off the initialization of weights that a checkpoint overwrites; loading does none now.
    """


# What code written for LLaVA's servers imports from here.
server_error_msg = "The server did not answer in time or reports an error. Please ask again."
moderation_msg = "This question is not answered, because the moderation objects to it. Please ask another."


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """Return a logger that writes to stderr and to a file in ``LOGDIR``, a new one every day (UTC)."""
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    path = Path(LOGDIR, logger_filename).absolute()
    if not any(getattr(handler, "baseFilename", None) == str(path) for handler in logger.handlers):
        setup_logging()
        path.parent.mkdir(parents=True, exist_ok=True)
        file = TimedRotatingFileHandler(path, when="D", utc=True, encoding="utf-8")
        file.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
    return logger


def pretty_print_semaphore(semaphore: Any) -> str:
    """Describe a semaphore of asyncio, or None, for a log."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"
