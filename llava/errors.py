"""Errors that a user can cause and can repair: one clear sentence each, never a traceback."""

import reprlib
from typing import Any

MOST_SHOWN = 240  # letters
_QUOTES = reprlib.Repr()  # which goes down no further than some levels, however deep a value is
_QUOTES.maxlevel, _QUOTES.maxstring, _QUOTES.maxother, _QUOTES.maxlong = 3, MOST_SHOWN, MOST_SHOWN, MOST_SHOWN


def shown(value: Any) -> str:
    """Return a value as messages quote it: all of what is short, otherwise its beginning and its end."""
    text = _QUOTES.repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]}...{text[-MOST_SHOWN // 2 :]}"


class UserError(ValueError):
    """Something in a command, a file or a setting that its author can correct.

    The message is one sentence that names the offending value and, where short, what would be accepted.
    """


class PromptTooLongError(UserError):
    """A prompt that leaves no room for an answer in what the model can read."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that was named, or is needed, and is not there."""

    # OSError would render its arguments in its own way; the sentence is all there is to say.
    __str__ = ValueError.__str__
