import numpy as np
import pytest

from playground.shapes.questions import (
    KINDS,
    SHORT_ANSWER,
    ask,
    ask_description,
    ask_several,
    describe,
    with_article,
)
from playground.shapes.world import COLORS, SHAPES, Scene, Thing, stream


def _words(text):
    return text.replace(SHORT_ANSWER, "").replace("?", " ").replace(".", " ").lower().split()


def _asked(text):
    """The color and the shape that a question's words name, ``None`` where they name none."""
    words = _words(text)
    return next((w for w in words if w in COLORS), None), next((w for w in words if w in SHAPES), None)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_agree_with_the_scene(kind):
    for seed in range(400):
        scene = Scene.from_seed(seed)
        question = ask(scene, stream(seed, "words"), kind)
        color, shape = _asked(question.text)
        fitting = [t for t in scene.things if color in (None, t.color) and shape in (None, t.shape)]
        if question.kind == "color":
            assert color is None and {t.color for t in fitting} == {question.answer}
        elif question.kind == "shape":
            assert shape is None and {t.shape for t in fitting} == {question.answer}
        else:
            assert question.answer == ("yes" if fitting else "no")


def test_named_things_share_a_word_with_the_question():
    for seed in range(200):
        scene = Scene.from_seed(seed)
        question = ask(scene, stream(seed, "words"))
        color, shape = _asked(question.text)
        related = [i for i, t in enumerate(scene.things) if t.color == color or t.shape == shape]
        assert list(question.named) == related


def test_every_kind_is_asked_and_yes_is_as_frequent_as_no():
    questions = [ask(Scene.from_seed(seed), stream(seed, "words")) for seed in range(1500)]
    assert {question.kind for question in questions} == set(KINDS)
    answers = [question.answer for question in questions if question.kind == "presence"]
    assert 0.45 < answers.count("yes") / len(answers) < 0.55
    assert 0.3 < np.mean([question.text.endswith(SHORT_ANSWER) for question in questions]) < 0.5


def test_questions_repeat_from_the_seed():
    scene = Scene.from_seed(5)
    assert ask_several(scene, stream(5, "words"), 10) == ask_several(scene, stream(5, "words"), 10)


def test_most_wrong_presence_questions_are_nearly_right():
    near = total = 0
    for seed in range(600):
        question = ask(Scene.from_seed(seed), stream(seed, "words"), "presence")
        color, shape = _asked(question.text)
        if question.answer == "no" and color and shape:
            total += 1
            near += bool(question.named)
    assert near / total > 0.6


def test_description_lists_everything_from_top_to_bottom():
    things = (Thing("red", "star", 50, 40, 40, 0), Thing("orange", "heart", 100, 90, 40, 0))
    assert describe(Scene(0, things)) == "a red star and an orange heart"
    assert describe(Scene(0, things[:1])) == "a red star"
    question = ask_description(Scene(0, things), stream(0, "words"))
    assert question.answer == "a red star and an orange heart" and question.named == (0, 1)


def test_articles():
    assert with_article("orange ring") == "an orange ring"
    assert with_article("blue ring") == "a blue ring"
