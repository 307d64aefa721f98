"""Held-out questions about shapes as a benchmark, for `llava compare`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llava.engine.base import Generation
from llava.eval.benchmark import Benchmark, Mark, Question, Response
from playground.shapes.measure import held_out_questions, is_right
from playground.shapes.questions import Question as Asked
from playground.shapes.world import Drawable

QUESTIONS = 4_000
# Share of a patch that a thing covers where the patch shows it.
SHOWN = 0.1
PLAYGROUND = Path(__file__).parents[1]
DRAWING = ("shapes/world.py", "shapes/outlines.py", "hard_shapes/scene.py", "hard_shapes/glyphs.py")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The picture of a scene, drawn when it is called.

    Attributes:
        scene: What is in it.
    """

    scene: Drawable

    @property
    def digest(self) -> str:
        """Tells pictures apart, and those of other versions of what draws them."""
        return f"{type(self.scene).__module__} {self.scene.seed} {drawing_digest()}"

    def __call__(self) -> Image.Image:
        """Draw it."""
        return self.scene.render()


def load(folder: Path, split: str) -> list[Question]:
    """Make the questions, each about a picture of its own; nothing is read."""
    return questions_about(held_out_questions(QUESTIONS))


def questions_about(pairs: Iterable[tuple[Drawable, Asked]]) -> list[Question]:
    """Return questions about scenes as those of a benchmark."""
    return [
        Question(
            id=number,
            text=asked.text,
            image=Picture(scene),
            unit=str(scene.seed),
            group=asked.kind,
            target=asked.answer,
            about=patches_of(scene, asked.named) if asked.named else None,
        )
        for number, (scene, asked) in enumerate(pairs)
    ]


@cache
def drawing_digest() -> str:
    """Tell versions of the code that draws pictures apart."""
    code = [(PLAYGROUND / name).read_bytes() for name in DRAWING]
    return hashlib.sha256(b"".join(code)).hexdigest()[:16]


def patches_of(scene: Drawable, things: tuple[int, ...]) -> Callable[[int, int], NDArray[np.bool_]]:
    """Return what tells which patches of any grid show some of the things; one at least."""

    def about(rows: int, columns: int) -> NDArray[np.bool_]:
        share = scene.coverage()[list(things)].max(axis=0)
        resized = np.asarray(Image.fromarray(share).resize((columns, rows), Image.Resampling.BOX))
        return resized >= min(SHOWN, resized.max())

    return about


def mark(response: Response) -> Mark:
    """Compare the whole answer with the right one."""
    question = response.question
    right = response.error is None and is_right(response.text, question.target)
    return Mark(question.unit, float(right), question.group)


BENCHMARK = Benchmark(
    name="shapes",
    title="Shapes",
    folder="",
    needs=(),
    load=load,
    mark=mark,
    generation=Generation(max_new_tokens=16),
)
