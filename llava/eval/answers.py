"""LLaVA's files of answers as scorers and converters read them: by question, and never silently of others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from llava.errors import UserError
from llava.eval.files import JsonObject, read_jsonl

logger = logging.getLogger(__name__)


def read_answers(
    path: Path,
    ids: Iterable[int | str],
    source: Path,
    counts: Callable[[JsonObject], bool] = lambda line: True,
) -> dict[str, JsonObject]:
    """Read records with ``question_id`` and ``text``, by their ids as text: files differ in writing them.

    How many of the questions have no record is said in a warning.

    Args:
        path: JSONL file; of several records of a question, the last counts.
        ids: Of the questions that are to have an answer.
        source: File of those.
        counts: Tells whether a record is to be read at all.

    Raises:
        UserError: If the file is missing or malformed, or has no answer to any of the questions.
    """
    lines = [line for line in read_jsonl(path, "question_id", "text") if counts(line)]
    answers = {str(line["question_id"]): line for line in lines}
    wanted = [str(key) for key in ids]
    missing = [key for key in wanted if key not in answers]
    if missing and len(missing) == len(wanted):
        has = f"; it answers {', '.join(list(answers)[:3])} and the like" if answers else ""
        raise UserError(f"{path} has an answer to none of the {len(wanted)} questions of {source}{has}")
    if missing:
        logger.warning(
            "%s has no answer to %d of the %d questions of %s, such as %s",
            *(path, len(missing), len(wanted), source, missing[0]),
        )
    return answers
