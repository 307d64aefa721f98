"""Questions with options about a scene, in English and in Chinese, for the benchmarks that want a letter."""

# ruff: noqa: RUF001 - Chinese has question marks of its own.

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from playground.shapes.miniatures.base import choose
from playground.shapes.questions import with_article
from playground.shapes.world import COLORS, SHAPES, Scene, Thing

LETTERS = "ABCD"


@dataclass(frozen=True, slots=True)
class OptionQuestion:
    """A question with options, one of which is right.

    Attributes:
        text: The question alone.
        options: Two to four.
        right: Index of the right one.
        topic: A key of `TOPICS`.
    """

    text: str
    options: tuple[str, ...]
    right: int
    topic: str = ""

    @property
    def letter(self) -> str:
        """Letter of the right option."""
        return LETTERS[self.right]

    @property
    def lines(self) -> list[str]:
        """The options as ``A. red`` and so on."""
        return [f"{letter}. {option}" for letter, option in zip(LETTERS, self.options, strict=False)]


@dataclass(frozen=True, slots=True)
class Language:
    """How questions are put.

    Attributes:
        templates: By topic.
        names: How a thing is called.
        hint: What may stand above a question; it has a line break, which only a quoted cell can hold.
        words: For the English words of options and names; those that are not there stay.
    """

    templates: Mapping[str, str]
    names: Callable[[str, str], str]
    hint: str
    words: Mapping[str, str] = field(default_factory=dict)

    def say(self, word: str) -> str:
        """Return an English word in this language."""
        return self.words.get(word, word)

    def name(self, color: str, shape: str) -> str:
        """Return the name of a thing."""
        return self.names(self.say(color), self.say(shape))


ENGLISH = Language(
    templates={
        "color": "What color is the {shape}?",
        "shape": "What shape is the {color} object?",
        "presence": "Is there {name} in the image?",
        "count": "How many shapes are there in the image?",
        "position": "Where is the {shape} in relation to the {other}?",
        "which": "Which of these is in the image?",
    },
    names=lambda color, shape: with_article(f"{color} {shape}"),
    hint="Look at the shapes.\nThe background does not count.",
)
CHINESE = Language(
    templates={
        "color": "图中的{shape}是什么颜色？",
        "shape": "图中{color}的物体是什么形状？",
        "presence": "图中有{name}吗？",
        "count": "图中有几个形状？",
        "position": "图中的{shape}在{other}的什么位置？",
        "which": "图中有下列哪一个？",
    },
    names=lambda color, shape: f"{color}的{shape}",
    hint="请看图中的形状。\n背景不算。",
    words={
        **{"red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色"},
        **{"purple": "紫色", "pink": "粉色", "black": "黑色"},
        **{"circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "五角星", "heart": "心形"},
        **{"cross": "十字形", "ring": "圆环", "yes": "有", "no": "没有"},
        **{"above": "上方", "below": "下方", "at the same height": "同一高度"},
    },
)


def ask_with_options(
    scene: Scene, rng: np.random.Generator, topic: str, language: Language = ENGLISH
) -> OptionQuestion:
    """Ask about a clear scene.

    Args:
        scene: What is in the picture.
        rng: Chooses what is asked and the order of the options; the same in every language.
        topic: A key of `TOPICS`.
        language: How it is put.
    """
    words, right, others = TOPICS[topic](scene, rng, language)
    order = rng.permutation(len(others) + 1)  # 0 stands for the right one
    options = tuple((right, *others)[index] for index in order)
    return OptionQuestion(
        language.templates[topic].format(**words), options, int(np.argmin(order)), topic=topic
    )


Asked = tuple[dict[str, str], str, list[str]]
"""The words of a template, the right option, and the others."""


def _color(scene: Scene, rng: np.random.Generator, language: Language) -> Asked:
    thing = _pick(scene, rng)
    others = _others(tuple(COLORS), thing.color, 3, rng)
    return {"shape": language.say(thing.shape)}, language.say(thing.color), list(map(language.say, others))


def _shape(scene: Scene, rng: np.random.Generator, language: Language) -> Asked:
    thing = _pick(scene, rng)
    others = _others(SHAPES, thing.shape, 3, rng)
    return {"color": language.say(thing.color)}, language.say(thing.shape), list(map(language.say, others))


def _presence(scene: Scene, rng: np.random.Generator, language: Language) -> Asked:
    thing, there = _pick(scene, rng), bool(rng.integers(2))
    # A clear scene has no shape twice, so that it is not there in any other color.
    color = thing.color if there else _others(tuple(COLORS), thing.color, 1, rng)[0]
    right, wrong = ("yes", "no") if there else ("no", "yes")
    return {"name": language.name(color, thing.shape)}, language.say(right), [language.say(wrong)]


def _count(scene: Scene, rng: np.random.Generator, _language: Language) -> Asked:
    right = str(len(scene.things))
    return {}, right, _others(tuple("123456"), right, 3, rng)


def _position(scene: Scene, rng: np.random.Generator, language: Language) -> Asked:
    top, bottom = (language.say(scene.things[index].shape) for index in (0, -1))
    if rng.integers(2):
        words, right, wrong = {"shape": top, "other": bottom}, "above", "below"
    else:
        words, right, wrong = {"shape": bottom, "other": top}, "below", "above"
    return words, language.say(right), [language.say(wrong), language.say("at the same height")]


def _which(scene: Scene, rng: np.random.Generator, language: Language) -> Asked:
    thing = _pick(scene, rng)
    others = _others(tuple(COLORS), thing.color, 3, rng)
    return (
        {},
        language.name(thing.color, thing.shape),
        [language.name(color, thing.shape) for color in others],
    )


def _pick(scene: Scene, rng: np.random.Generator) -> Thing:
    return scene.things[int(rng.integers(len(scene.things)))]


def _others(words: Sequence[str], right: str, count: int, rng: np.random.Generator) -> list[str]:
    """Return several different words other than the right one."""
    left = [word for word in words if word != right]
    taken: list[str] = []
    for _ in range(count):
        taken.append(choose(left, rng))
        left.remove(taken[-1])
    return taken


TOPICS: dict[str, Callable[[Scene, np.random.Generator, Language], Asked]] = {
    "color": _color,
    "shape": _shape,
    "presence": _presence,
    "count": _count,
    "position": _position,
    "which": _which,
}
