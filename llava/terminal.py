"""What a command makes of its terminal: Ctrl-C, and streams that are closed, full or of few characters.

Only for processes that are commands of this package: the streams and signals of other programs are theirs.
"""

import codecs
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType
from typing import Any

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it

_PACKAGE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib takes long to import
_SPELLED_OUT = "llava.spelled_out"


class OutputError(Exception):
    """Standard output takes nothing more; ``errno`` is EPIPE where its reader went away.

    No `OSError`, so that nobody takes it for one of the files that they read or write.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"the output cannot be written: {error.strerror}")
        self.errno = error.errno

    @property
    def reader_left(self) -> bool:
        """Whether what reads the output (``head``, ``less``) has enough, which is no error."""
        return self.errno == errno.EPIPE


def runs_a_command() -> bool:
    """Tell whether this process is ``llava`` or ``python -m llava.…``, and no other program."""
    script = sys.argv[0] if sys.argv else ""
    if script == "-m":  # while Python looks for the module
        module = next((after for word, after in pairwise(sys.orig_argv) if word == "-m"), "")
        return module.partition(".")[0] == "llava"
    script = os.path.abspath(script)  # noqa: PTH100 - see above
    name = os.path.basename(script)  # noqa: PTH119 - see above
    return name in ("llava", "llava.exe") or script.startswith(_PACKAGE + os.sep)


def prepare_terminal() -> None:
    """Make Ctrl-C end this process without a traceback, and let its standard streams fail with a sentence."""
    hush_bitsandbytes()
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    _open_closed_streams()
    codecs.register_error(_SPELLED_OUT, _spell_out)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # What cannot be decoded is refused where the text is used, with a sentence, and not where it is read.
        is_ascii = codecs.lookup(sys.stdin.encoding).name == "ascii"
        encoding = "utf-8" if is_ascii else sys.stdin.encoding
        if (sys.stdin.encoding, sys.stdin.errors) != (encoding, "surrogateescape"):
            sys.stdin.reconfigure(encoding=encoding, errors="surrogateescape")
    sys.stdout = _reopened(sys.stdout, _Output, _SPELLED_OUT)
    sys.stderr = _reopened(sys.stderr, _ErrorOutput, "backslashreplace")


def hush_bitsandbytes() -> None:
    """Let bitsandbytes say nothing but errors.

    It warns when it is imported, which transformers' Trainer does, of kernels that it can do without, and at
    every layer of every step of the type of its inputs.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt while a command works; before and after that it ends the process."""
    if signal.getsignal(signal.SIGINT) is not _end:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, _end)


def flush_output() -> None:
    """Write what has been printed so far.

    Raises:
        OutputError: If that is not possible.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def _end(*_: object) -> None:
    """End the process."""
    os._exit(INTERRUPTED_EXIT_CODE)


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; in the middle of an import end the process.

    There libraries make other errors of it, or none, or abort.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _end()
        frame = frame.f_back
    signal.default_int_handler(signal_number, frame)


def _open_closed_streams() -> None:
    """Let streams that are closed lead nowhere; the next file that is opened would get the number of one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open


class _Output(io.FileIO):
    """Standard output, whose errors are told from those of other files."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _discard(self)
            raise OutputError(error) from error


class _ErrorOutput(io.FileIO):
    """Standard error: what cannot be written there has no other place, and ends nobody's work."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            _discard(self)
            return len(data)


def _discard(stream: io.FileIO) -> None:
    """Let nothing more be written where a stream led, such as what its buffers still hold."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _reopened(stream: Any, kind: type[io.FileIO], errors: str) -> Any:
    """Return a stream to where another one writes; one that is no file of this process stays as it is."""
    binary = getattr(stream, "buffer", None)
    if type(getattr(binary, "raw", binary)) is not io.FileIO:
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """Write characters that a terminal lacks as JSON spells them in a text, so that JSON stays JSON."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    spelled = (f"\\u{units[place : place + 2].hex()}" for place in range(0, len(units), 2))
    return "".join(spelled), error.end
