"""Questions about a scene, with their answers: its things' colors and shapes, and what is there at all.

Every question is made from a template and a scene, is unambiguous in that scene, and knows which things its
words name; that is what the toy CLIP learns to point at, and what a test of the reducer asks for.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from playground.shapes.world import COLORS, SHAPES, Drawable, Scene, Thing

T = TypeVar("T")

KINDS = ("color", "shape", "presence")
# Questions about a picture in one conversation.
TURNS = 10
# LLaVA-1.5's instruction for short answers, which its benchmarks append to their questions.
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."

COLOR_TEMPLATES = (
    "What color is the {shape}?",
    "What is the color of the {shape}?",
    "Which color does the {shape} have?",
    "Tell me the color of the {shape}.",
)
SHAPE_TEMPLATES = (
    "What shape is the {color} object?",
    "What is the shape of the {color} thing?",
    "Which shape is {color}?",
    "Tell me the shape of the {color} object.",
)
PRESENCE_TEMPLATES = (
    "Is there {thing} in the picture?",
    "Is there {thing} in the image?",
    "Do you see {thing}?",
    "Does the picture show {thing}?",
)
DESCRIPTION_TEMPLATES = (
    "Describe the picture.",
    "What is in the picture?",
    "Describe the image briefly.",
    "What do you see in the image?",
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a scene.

    Attributes:
        text: As a user asks it.
        answer: The right answer.
        kind: One of `KINDS`, or ``description``; of a crowded scene one of that dataset's eight kinds.
        named: Indices of the scene's things that the question's words name: here all of a color or a shape
            among them, in a crowded scene those that the words refer to, maybe by a character.
    """

    text: str
    answer: str
    kind: str
    named: tuple[int, ...]


def ask(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> Question:
    """Ask something about a scene.

    Args:
        scene: What is in the picture.
        rng: Chooses the question and its wording.
        kind: One of `KINDS`; any, by chance, if not given. Where the scene leaves no unambiguous question
            about a color or a shape, one about presence takes its place.
    """
    question = _MAKERS[kind or KINDS[int(rng.integers(len(KINDS)))]](scene, rng) or _ask_presence(scene, rng)
    if rng.random() < 0.4:
        return Question(question.text + SHORT_ANSWER, question.answer, question.kind, question.named)
    return question


def ask_several(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Ask ``count`` questions; fewer if the scene does not yield as many that differ in more than wording."""
    questions: dict[tuple[str, ...], Question] = {}
    for _ in range(4 * count):
        question = ask(scene, rng)
        questions.setdefault((question.kind, *named_words(question.text)), question)
        if len(questions) == count:
            break
    return list(questions.values())


def named_words(text: str) -> list[str]:
    """The colors and shapes in a text, in its order."""
    return [word for word in re.findall("[a-z]+", text) if word in (*COLORS, *SHAPES)]


def ask_description(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask what is in the picture; the answer lists everything from top to bottom."""
    text = DESCRIPTION_TEMPLATES[int(rng.integers(len(DESCRIPTION_TEMPLATES)))]
    return Question(text, describe(scene), "description", tuple(range(len(scene.things))))


def describe(scene: Drawable) -> str:
    """List the things of a scene from top to bottom: ``a red star, a blue ring and an orange heart``."""
    *first, last = [with_article(thing.name) for thing in scene.things]
    return f"{', '.join(first)} and {last}" if first else last


def with_article(name: str) -> str:
    """Put ``a`` or ``an`` before a name."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _ask_color(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for the color of a shape that occurs in one color only."""
    by_shape = {shape: {thing.color for thing in scene.things if thing.shape == shape} for shape in SHAPES}
    certain = [shape for shape, colors in by_shape.items() if len(colors) == 1]
    if not certain:
        return None
    shape = choose(certain, rng)
    text = choose(COLOR_TEMPLATES, rng).format(shape=shape)
    return Question(text, min(by_shape[shape]), "color", indices(scene, lambda thing: thing.shape == shape))


def _ask_shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Ask for the shape of a color that occurs in one shape only."""
    by_color = {color: {thing.shape for thing in scene.things if thing.color == color} for color in COLORS}
    certain = [color for color, shapes in by_color.items() if len(shapes) == 1]
    if not certain:
        return None
    color = choose(certain, rng)
    text = choose(SHAPE_TEMPLATES, rng).format(color=color)
    return Question(text, min(by_color[color]), "shape", indices(scene, lambda thing: thing.color == color))


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Question:
    """Ask whether something is there; yes and no are equally likely, and most no's are nearly there."""
    wanted = bool(rng.integers(2))
    if rng.random() < 0.3:
        return _ask_presence_of_one_word(scene, rng, wanted)
    color, shape = there_or_nearly(scene, rng, wanted)
    text = choose(PRESENCE_TEMPLATES, rng).format(thing=with_article(f"{color} {shape}"))
    named = indices(scene, lambda thing: thing.color == color or thing.shape == shape)
    return Question(text, "yes" if wanted else "no", "presence", named)


def there_or_nearly(scene: Drawable, rng: np.random.Generator, wanted: bool) -> tuple[str, str]:
    """Return color and shape of something that is there, or else of what is not and mostly nearly is."""
    there = {(thing.color, thing.shape) for thing in scene.things}
    color, shape = choose(sorted(there), rng)
    while not wanted and (color, shape) in there:
        # Two in three wrong pairs keep the color or the shape of something that is there.
        change = int(rng.integers(3))
        color = color if change == 1 else choose(tuple(COLORS), rng)
        shape = shape if change == 0 else choose(SHAPES, rng)
    return color, shape


def _ask_presence_of_one_word(scene: Scene, rng: np.random.Generator, wanted: bool) -> Question:
    about_shape = bool(rng.integers(2))
    there = {thing.shape if about_shape else thing.color for thing in scene.things}
    names = tuple(SHAPES) if about_shape else tuple(COLORS)
    name = choose([name for name in names if (name in there) == wanted], rng)
    thing_text = with_article(name if about_shape else f"{name} object")
    text = choose(PRESENCE_TEMPLATES, rng).format(thing=thing_text)
    named = indices(scene, lambda thing: name in (thing.color, thing.shape))
    return Question(text, "yes" if wanted else "no", "presence", named)


def indices(scene: Drawable, test: Callable[[Thing], bool]) -> tuple[int, ...]:
    """Return the indices of the things that pass a test."""
    return tuple(index for index, thing in enumerate(scene.things) if test(thing))


def choose(options: Sequence[T], rng: np.random.Generator) -> T:
    """Return one of some options, all equally likely."""
    return options[int(rng.integers(len(options)))]


_MAKERS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "presence": _ask_presence,
}
