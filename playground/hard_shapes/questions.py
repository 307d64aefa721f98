"""Eight kinds of questions about a crowded scene, each with one right answer.

A thing is referred to by words that fit it alone: its color and shape, its shape, its color, or the
character on it. What a question names is known, so that it can be told whether a reducer kept it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from playground.hard_shapes.scene import Scene
from playground.shapes.questions import (
    DESCRIPTION_TEMPLATES,
    PRESENCE_TEMPLATES,
    SHORT_ANSWER,
    Question,
    choose,
    describe,
    indices,
    there_or_nearly,
    with_article,
)
from playground.shapes.world import COLORS, SHAPES, Thing

KINDS = ("color", "shape", "presence", "count", "position", "character", "size", "description")
# Centers of two things are at least so far apart, in pixels, where a question is about their order; and one
# is so much larger, where it is about their size.
APART, LARGER = 28, 1.5
# A share of the short questions carries LLaVA-1.5's instruction for them.
INSTRUCTED = 0.4

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {thing}?",
        "What is the color of the {thing}?",
        "Which color does the {thing} have?",
        "Tell me the color of the {thing}.",
    ),
    "shape": (
        "What shape is the {thing}?",
        "What is the shape of the {thing}?",
        "Which shape does the {thing} have?",
        "Tell me the shape of the {thing}.",
    ),
    "presence": PRESENCE_TEMPLATES,
    "count": (
        "How many {things} are there?",
        "How many {things} are in the image?",
        "How many {things} do you see?",
        "Count the {things}.",
    ),
    "position x": (
        "Is the {thing} left or right of the {other}?",
        "Is the {thing} to the left or to the right of the {other}?",
        "On which side of the {other} is the {thing}, left or right?",
    ),
    "position y": (
        "Is the {thing} above or below the {other}?",
        "Does the {thing} lie above or below the {other}?",
        "Where is the {thing}, above or below the {other}?",
    ),
    "character": (
        "Which character is on the {thing}?",
        "What is written on the {thing}?",
        "What character does the {thing} show?",
        "Read the character on the {thing}.",
    ),
    "size": (
        "Is the {thing} larger or smaller than the {other}?",
        "Is the {thing} smaller or larger than the {other}?",
        "Compared with the {other}, is the {thing} larger or smaller?",
    ),
    "description": DESCRIPTION_TEMPLATES,
}
MARKED = ("object with the character {}", "object marked {}", "shape with a {} on it")


@dataclass(frozen=True, slots=True)
class Reference:
    """Words that fit one thing of a scene alone.

    Attributes:
        thing: Its index.
        words: Such as ``red star``, to follow ``the``.
        tells: What these say of it: ``color``, ``shape``, ``character``.
    """

    thing: int
    words: str
    tells: frozenset[str]


def references(scene: Scene, rng: np.random.Generator) -> list[Reference]:
    """Return all words that fit one thing alone; ``rng`` chooses how a character is spoken of."""
    pairs = Counter(thing.name for thing in scene.things)
    colors = Counter(thing.color for thing in scene.things)
    shapes = Counter(thing.shape for thing in scene.things)
    found = []
    for index, thing in enumerate(scene.things):
        if thing.character:
            words = choose(MARKED, rng).format(thing.character)
            found.append(Reference(index, words, frozenset({"character"})))
        if pairs[thing.name] == 1:
            found.append(Reference(index, thing.name, frozenset({"color", "shape"})))
        if colors[thing.color] == 1:
            found.append(Reference(index, f"{thing.color} object", frozenset({"color"})))
        if shapes[thing.shape] == 1:
            found.append(Reference(index, thing.shape, frozenset({"shape"})))
    return found


def ask(scene: Scene, rng: np.random.Generator, kind: str) -> Question:
    """Ask something about a scene.

    Args:
        scene: What is in the picture.
        rng: Chooses the question and its wording.
        kind: One of `KINDS`. Where the scene leaves no unambiguous question of it, one about presence takes
            its place.
    """
    question = _MAKERS[kind](scene, rng) or _ask_presence(scene, rng)
    if question.kind != "description" and rng.random() < INSTRUCTED:
        return Question(question.text + SHORT_ANSWER, question.answer, question.kind, question.named)
    return question


def ask_several(scene: Scene, rng: np.random.Generator, count: int, kinds: Sequence[str]) -> list[Question]:
    """Ask ``count`` questions of these kinds, by chance; fewer if the scene does not yield as many."""
    found: dict[tuple[str, str, tuple[int, ...]], Question] = {}
    for _ in range(4 * count):
        question = ask(scene, rng, choose(kinds, rng))
        found.setdefault((question.kind, question.answer, question.named), question)
        if len(found) == count:
            break
    return list(found.values())


def named_objects(text: str) -> Counter[str]:
    """Return the things that a description names, as ``color shape``, and how often each."""
    words = [word.strip(".,") for word in text.lower().split()]
    return Counter(
        f"{color} {shape}" for color, shape in pairwise(words) if color in COLORS and shape in SHAPES
    )


def description_score(said: str, scene_description: str) -> float:
    """Return F1 of the things that a description names, 0 to 1."""
    named, there = named_objects(said), named_objects(scene_description)
    right = sum((named & there).values())
    return 2 * right / (sum(named.values()) + sum(there.values()))


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    return _ask_attribute(scene, rng, "color", lambda thing: thing.color)


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    return _ask_attribute(scene, rng, "shape", lambda thing: thing.shape)


def _ask_character(scene: Scene, rng: np.random.Generator) -> Question | None:
    return _ask_attribute(scene, rng, "character", lambda thing: thing.character)


def _ask_attribute(
    scene: Scene, rng: np.random.Generator, kind: str, answer: Callable[[Thing], str]
) -> Question | None:
    """Ask for something of a thing that the words for it do not tell."""
    silent = [
        reference
        for reference in references(scene, rng)
        if kind not in reference.tells and answer(scene.things[reference.thing])
    ]
    if not silent:
        return None
    chosen = choose(silent, rng)
    text = choose(TEMPLATES[kind], rng).format(thing=chosen.words)
    return Question(text, answer(scene.things[chosen.thing]), kind, (chosen.thing,))


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether something is there: half of it is not, and most of that nearly is."""
    wanted = bool(rng.integers(2))
    color, shape = there_or_nearly(scene, rng, wanted)
    text = choose(TEMPLATES["presence"], rng).format(thing=with_article(f"{color} {shape}"))
    # What is not there is refuted by what has its color or its shape.
    named = indices(
        scene,
        lambda thing: (
            thing.name == f"{color} {shape}" if wanted else thing.color == color or thing.shape == shape
        ),
    )
    return Question(text, "yes" if wanted else "no", "presence", named)


def _ask_count(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask how many of a color or of a shape there are; the numbers that occur are equally likely."""
    tests: list[tuple[str, Callable[[Thing], bool]]] = [
        *((f"{color} objects", lambda thing, color=color: thing.color == color) for color in COLORS),
        *((_plural(shape), lambda thing, shape=shape: thing.shape == shape) for shape in SHAPES),
    ]
    by_number: dict[int, list[tuple[str, tuple[int, ...]]]] = {}
    for words, test in tests:
        named = indices(scene, test)
        if named:
            by_number.setdefault(len(named), []).append((words, named))
    number = choose(sorted(by_number), rng)
    words, named = choose(by_number[number], rng)
    return Question(choose(TEMPLATES["count"], rng).format(things=words), str(number), "count", named)


def _ask_position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask on which side of another thing one is."""
    axis = "xy"[int(rng.integers(2))]
    low, high = ("left", "right") if axis == "x" else ("above", "below")
    return _ask_about_two(
        scene,
        rng,
        "position",
        TEMPLATES[f"position {axis}"],
        lambda first, second: _order(getattr(first, axis) - getattr(second, axis), APART, low, high),
    )


def _ask_size(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask which of two things is larger."""
    return _ask_about_two(
        scene,
        rng,
        "size",
        TEMPLATES["size"],
        lambda first, second: _order(
            math.log(first.size / second.size), math.log(LARGER), "smaller", "larger"
        ),
    )


def _ask_about_two(
    scene: Scene,
    rng: np.random.Generator,
    kind: str,
    templates: Sequence[str],
    answer: Callable[[Thing, Thing], str | None],
) -> Question | None:
    known = references(scene, rng)
    pairs = [
        (first, second)
        for first in known
        for second in known
        if first.thing != second.thing and answer(scene.things[first.thing], scene.things[second.thing])
    ]
    if not pairs:
        return None
    first, second = choose(pairs, rng)
    right = answer(scene.things[first.thing], scene.things[second.thing])
    assert right is not None
    text = choose(templates, rng).format(thing=first.words, other=second.words)
    return Question(text, right, kind, (first.thing, second.thing))


def _order(difference: float, least: float, low: str, high: str) -> str | None:
    """Return which of two a difference says; None if it is too small to ask for."""
    if abs(difference) < least:
        return None
    return low if difference < 0 else high


def _ask_description(scene: Scene, rng: np.random.Generator) -> Question:
    text = choose(TEMPLATES["description"], rng)
    return Question(text, describe(scene), "description", tuple(range(len(scene.things))))


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "presence": _ask_presence,
    "count": _ask_count,
    "position": _ask_position,
    "character": _ask_character,
    "size": _ask_size,
    "description": _ask_description,
}
