"""What the miniatures of all benchmarks share: clear scenes, questions about them, and files as bytes."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from llava.eval.files import JsonObject, json_line
from playground.shapes.questions import SHORT_ANSWER, Question, ask
from playground.shapes.world import COLORS, HELD_OUT, SHAPES, Scene

Files = dict[str, bytes]
"""The files of one benchmark by their names below its folder."""

# Other code measures on the first held-out seeds.
FIRST_SEED = 5_000_000
FEWEST_THINGS = 3
# From the highest center to the lowest, in pixels: enough to say which is above.
HEIGHT = 40


def clear_scenes(start: int) -> Iterator[Scene]:
    """Yield held-out scenes about which every kind of question has one answer.

    Args:
        start: Where to begin, counted from `FIRST_SEED`.

    Returns:
        Scenes of at least three things, in different colors and shapes and not all at one height.
    """
    for seed in HELD_OUT[FIRST_SEED + start :]:
        scene = Scene.from_seed(seed)
        things = scene.things
        colors, shapes = ({getattr(thing, part) for thing in things} for part in ("color", "shape"))
        is_varied = len(colors) == len(shapes) == len(things) >= FEWEST_THINGS
        if is_varied and things[-1].y - things[0].y >= HEIGHT:
            yield scene


def ask_plainly(scene: Scene, rng: np.random.Generator, kind: str, answer: str | None = None) -> Question:
    """Ask a question without an instruction.

    Args:
        scene: A clear one.
        rng: Chooses the question and its wording.
        kind: One of `playground.shapes.questions.KINDS`.
        answer: The answer that it must have; any if not given.
    """
    while True:
        question = ask(scene, rng, kind)
        if answer in (None, question.answer):
            return replace(question, text=question.text.removesuffix(SHORT_ANSWER))


def yes_or_no(number: int) -> str:
    """Return ``yes`` and ``no`` in turn."""
    return "no" if number % 2 else "yes"


def other_answer(question: Question, rng: np.random.Generator) -> str:
    """Return a wrong answer of the same kind."""
    words = {"color": tuple(COLORS), "shape": SHAPES, "presence": ("yes", "no")}[question.kind]
    return choose([word for word in words if word != question.answer], rng)


def choose(words: Sequence[str], rng: np.random.Generator) -> str:
    """Return one of several words."""
    return words[int(rng.integers(len(words)))]


def ten_answers(answer: str, other: str) -> list[str]:
    """Return what ten people said, two of whom see it differently, as in VQAv2, TextVQA and VizWiz."""
    return [other if person in (3, 8) else answer for person in range(10)]


def confident(answers: Sequence[str]) -> list[JsonObject]:
    """Return answers as VQAv2 and VizWiz store them, without their ids."""
    return [{"answer": answer, "answer_confidence": "yes"} for answer in answers]


def jpeg(picture: Image.Image) -> bytes:
    """Return a picture as a JPEG file."""
    return _encoded(picture, format="JPEG", quality=75)


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file with a palette; noise in full color would make it large."""
    method, dither = Image.Quantize.FASTOCTREE, Image.Dither.NONE
    return _encoded(picture.quantize(64, method=method, dither=dither), format="PNG")


def json_file(document: Any) -> bytes:
    """Return a JSON document as a file."""
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def jsonl_file(objects: Iterable[JsonObject]) -> bytes:
    """Return a file with one JSON object a line."""
    return "".join(map(json_line, objects)).encode()


def _encoded(picture: Image.Image, **settings: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, **settings)
    return file.getvalue()
