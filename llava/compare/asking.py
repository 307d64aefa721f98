"""All questions, asked with one setting of the reducer; what came of it is kept, so that a run can go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from llava.assistant import Assistant
from llava.bench.machine import ROOT
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.files import read_json, write_json
from llava.messages import Answer, Failure, Request

SCHEMA = 1
NEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its right answer.

    Attributes:
        image: In RGB.
        text: The question.
        answer: What is right.
        kind: Of the question.
    """

    image: Image.Image
    text: str
    answer: str
    kind: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting made of all questions, in their order.

    Attributes:
        setting: As ``mm_vision_token_reduce_func`` has it.
        points: 1 for a right answer, 0 for a wrong one.
        kinds: Of the questions.
        visual_tokens: Of each question's image.
        reduction_ms: Milliseconds of text encoder and choice, per question.
        prefill_ms: Milliseconds of projector and prefill, per question.
        error: Why the setting cannot be met, instead of all that.
    """

    setting: str
    points: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    visual_tokens: list[int] = field(default_factory=list)
    reduction_ms: float = 0.0
    prefill_ms: float = 0.0
    error: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return fmean(self.points)

    @property
    def mean_tokens(self) -> float:
        """Visual tokens of an image on average."""
        return fmean(self.visual_tokens)


def shapes_questions(count: int) -> list[Asked]:
    """Return so many held-out questions about shapes, each about a picture of its own.

    Raises:
        UserError: If the shapes are not there: they come with a clone of the repository.
    """
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # an installed command does not look there
    try:
        from playground.shapes.measure import held_out_questions
    except ImportError:
        raise UserError(
            f"the questions about shapes come with a clone of the repository, and {ROOT} is none"
        ) from None
    pairs = islice(held_out_questions(count), count)
    return [Asked(scene.render(), one.text, one.answer, one.kind) for scene, one in pairs]


def run_settings(
    assistant: Assistant,
    settings: Sequence[str],
    questions: Sequence[Asked],
    folder: Path,
    key: dict[str, Any],
    batch_size: int,
) -> Iterator[Outcome]:
    """Ask all questions with each setting, unless the folder has what came of it already.

    Args:
        assistant: The model.
        settings: Of its reducer.
        questions: Asked with each.
        folder: Gets a JSON file per setting.
        key: What the outcome depends on beside the setting: files with another are not taken.
        batch_size: Questions that are answered together.
    """
    for setting in settings:
        path = folder / f"{setting.replace(':', '-')}.json"
        known = _read(path, key)
        if known is None:
            known = ask(assistant, setting, questions, batch_size)
            write_json(path, {"schema": SCHEMA, "key": key, **asdict(known)})
        yield known


def ask(assistant: Assistant, setting: str, questions: Sequence[Asked], batch_size: int) -> Outcome:
    """Ask all questions with one setting."""
    from playground.shapes.measure import is_right

    generation = Generation(max_new_tokens=NEW_TOKENS)
    requests = [
        Request.ask(one.text, one.image, token_reduction=setting, generation=generation) for one in questions
    ]
    answers: list[Answer] = []
    for result in assistant.answer_all(requests, batch_size):
        if isinstance(result, Failure):
            return Outcome(setting, error=str(result.error))
        answers.append(result)
    return Outcome(
        setting=setting,
        points=[
            int(is_right(answer.text, one.answer)) for answer, one in zip(answers, questions, strict=True)
        ],
        kinds=[one.kind for one in questions],
        visual_tokens=[answer.cost.visual_tokens for answer in answers],
        reduction_ms=fmean(answer.cost.reduction_ms for answer in answers),
        prefill_ms=fmean(answer.cost.prefill_ms for answer in answers),
    )


def _read(path: Path, key: dict[str, Any]) -> Outcome | None:
    """Return a setting's outcome from an earlier run of the same questions; None if there is none."""
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or found.get("key") != key:
        return None
    return Outcome(**{name: value for name, value in found.items() if name not in ("schema", "key")})
