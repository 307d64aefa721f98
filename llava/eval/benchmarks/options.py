"""Questions with options: how they are put, and which option an answer means."""

import re
import string
from collections.abc import Sequence

from llava.errors import UserError

LETTERS = string.ascii_uppercase


def require_letters(options: Sequence[str], where: str) -> None:
    """Make sure that there are letters for the options.

    Raises:
        UserError: If there are more options than letters.
    """
    if len(options) > len(LETTERS):
        raise UserError(f"{where} has {len(options)} options; accepted: at most {len(LETTERS)}, A to Z")


def option_lines(options: Sequence[str]) -> str:
    """Return options as lines: ``A. red`` and so on."""
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def chosen_letter(text: str, options: Sequence[str]) -> str | None:
    """Return the letter that an answer means; None if it means none of the options.

    Read are a letter, alone or followed by one of ``.):`` or in brackets, and the words of an option.

    Args:
        text: The answer.
        options: As they were shown, the first as A.
    """
    letters = LETTERS[: len(options)]
    if not letters:
        return None
    if match := re.match(rf"\(?([{letters}])(?:[.):]|$)", text.strip()):
        return match[1]
    words = _words(text)
    matching = [letter for letter, option in zip(letters, options, strict=True) if _words(option) == words]
    return matching[0] if len(matching) == 1 else None


def _words(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
