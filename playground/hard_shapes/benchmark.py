"""Held-out questions about crowded scenes as a benchmark, for `llava compare`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava.engine.base import Generation
from llava.eval.benchmark import Benchmark, Mark, Question, Response
from playground.hard_shapes.questions import KINDS, ask, description_score
from playground.hard_shapes.scene import HELD_OUT, VALIDATION, Scene
from playground.shapes.benchmark import questions_about
from playground.shapes.measure import is_right
from playground.shapes.questions import Question as Asked
from playground.shapes.world import stream

QUESTIONS = 4_000
SPLITS = {"held-out": HELD_OUT, "validation": VALIDATION}


def load(folder: Path, split: str) -> list[Question]:
    """Make the questions, each about a picture of its own, the kinds in turn; nothing is read."""
    return questions_about(_ask_all(SPLITS[split or "held-out"]))


def _ask_all(seeds: range) -> Iterator[tuple[Scene, Asked]]:
    for number, seed in enumerate(seeds[:QUESTIONS]):
        scene = Scene.from_seed(seed)
        yield scene, ask(scene, stream(seed, "words"), KINDS[number % len(KINDS)])


def mark(response: Response) -> Mark:
    """Compare the whole answer with the right one; of a description, what it names."""
    question = response.question
    if response.error is not None:
        points = 0.0
    elif question.group == "description":
        points = description_score(response.text, question.target)
    else:
        points = float(is_right(response.text, question.target.lower()))
    return Mark(question.unit, points, question.group)


BENCHMARK = Benchmark(
    name="hard-shapes",
    title="Hard shapes",
    folder="",
    needs=(),
    load=load,
    splits=tuple(SPLITS),
    mark=mark,
    generation=Generation(max_new_tokens=96),
)
