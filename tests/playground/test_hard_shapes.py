"""Crowded scenes: the same bit for bit, disjoint seeds, questions with one right answer, and their marks."""

import hashlib
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from llava.eval.benchmark import Response
from playground.hard_shapes.benchmark import BENCHMARK, QUESTIONS
from playground.hard_shapes.glyphs import CHARACTERS, COLUMNS, GLYPHS, ROWS
from playground.hard_shapes.questions import (
    KINDS,
    MARKED,
    TEMPLATES,
    ask,
    ask_several,
    description_score,
    named_objects,
    references,
)
from playground.hard_shapes.scene import (
    COVERED,
    FEWEST_THINGS,
    GRID,
    HELD_OUT,
    MOST_THINGS,
    PATCH,
    SIZE,
    TRAIN,
    VALIDATION,
    Scene,
)
from playground.shapes import world
from playground.shapes.questions import SHORT_ANSWER, describe
from playground.shapes.world import COLORS, Thing, stream

# Of the pictures of all SEEDS; a change here means that what was trained on them saw others.
PIXELS = "bef77546213b9dd46806827c1ea62e7ab5509d7f034d639de4fbb68ef5364d8e"
# Of the first 200 held-out questions.
WORDS = "3cf3a093c796afaee168a769bb4df28b94de4223aaaaf5416d7b9de6c79abf44"
SEEDS = [*TRAIN[:20], *VALIDATION[:10], *HELD_OUT[:20]]


@pytest.fixture(scope="module")
def scenes():
    return [Scene.from_seed(seed) for seed in HELD_OUT[:300]]


def test_pixels_and_words_are_those_of_always():
    pixels = b"".join(Scene.from_seed(seed).render().tobytes() for seed in SEEDS)
    assert hashlib.sha256(pixels).hexdigest() == PIXELS
    words = repr([(one.text, one.target) for one in BENCHMARK.load(None, "")[:200]])
    assert hashlib.sha256(words.encode()).hexdigest() == WORDS


def test_no_seed_is_shared_with_another_use():
    ranges = [TRAIN, VALIDATION, HELD_OUT, world.TRAIN, world.HELD_OUT]
    assert all(
        len(one) and (one.stop <= other.start or other.stop <= one.start)
        for one, other in combinations(ranges, 2)
    )


def test_scenes_are_crowded_and_what_is_in_them_can_be_seen(scenes):
    assert {len(scene.things) for scene in scenes} == set(range(FEWEST_THINGS, MOST_THINGS + 1))
    patches = []
    for scene in scenes:
        shares = scene.coverage()
        assert shares.shape == (len(scene.things), GRID, GRID)
        assert shares.sum(0).max() <= 1 + 1e-5  # what is behind is not seen
        assert (shares.max(axis=(1, 2)) > 0.1).all()
        assert (shares.max(0) > 0.35).sum() <= GRID * GRID / 4  # what the interquartile rule can keep
        assert sum(thing.size**2 for thing in scene.things) <= 1.05 * COVERED * SIZE**2
        characters = [thing.character for thing in scene.things if thing.character]
        assert len(set(characters)) == len(characters)
        patches += [(share > 0.1).sum() for share in shares]
    assert np.percentile(patches, 25) <= 3  # many are small


def test_some_things_are_partly_hidden(scenes):
    hidden = 0
    for scene in scenes[:100]:
        alone = [Scene(scene.seed, (thing,)).coverage().sum() for thing in scene.things]
        seen = scene.coverage().sum(axis=(1, 2))
        assert (seen / alone).min() > 0.35
        hidden += (seen / alone < 0.97).sum()
    assert hidden > 20


def test_coverage_says_where_the_colors_are(scenes):
    checked = 0
    for scene in scenes[:10]:
        picture = np.asarray(scene.render(), np.float32)
        for thing, share in zip(scene.things, scene.coverage(), strict=True):
            row, column = np.unravel_index(share.argmax(), share.shape)
            if share[row, column] > 0.98 and not thing.character:
                patch = picture[row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
                assert np.abs(patch.mean((0, 1)) - COLORS[thing.color]).max() < 45
                checked += 1
    assert checked > 5


def test_a_larger_picture_shows_the_same():
    scene = Scene.from_seed(HELD_OUT[4])
    large = scene.render(2 * SIZE)
    small = np.asarray(large.reduce(2), np.float32)
    assert large.size == (2 * SIZE, 2 * SIZE)
    assert np.abs(small - np.asarray(scene.render(), np.float32)).mean() < 20


def test_characters_are_whole_and_differ():
    assert all(len(rows) == ROWS and {len(row) for row in rows} == {COLUMNS} for rows in GLYPHS.values())
    assert len(set(GLYPHS.values())) == len(CHARACTERS) == 16


def test_words_for_a_thing_fit_it_alone(scenes):
    for scene in scenes[:100]:
        for reference in references(scene, stream(scene.seed, "words")):
            thing = scene.things[reference.thing]
            if "character" in reference.tells:
                assert reference.words in {words.format(thing.character) for words in MARKED}
                continue
            fitting = [
                other
                for other in scene.things
                if set(reference.words.split()) - {"object"} <= {other.color, other.shape}
            ]
            assert fitting == [thing]


COLOR, SHAPE = "|".join(COLORS), "|".join(world.SHAPES)
PHRASE = re.compile(
    r"object with the character (\w)|object marked (\w)|shape with a (\w) on it"
    rf"|({COLOR}) objects?|(?:({COLOR}) )?\b({SHAPE})(?:e?s)?\b"
)


def things_meant(scene, text):
    """Find the things that each phrase of a question fits, from its words alone."""
    found = []
    for match in PHRASE.finditer(text):
        *marks, only_color, color, shape = match.groups()
        wanted = {"character": next(filter(None, marks), None), "color": only_color or color, "shape": shape}
        found.append(
            [
                thing
                for thing in scene.things
                if all(value in (None, getattr(thing, name)) for name, value in wanted.items())
            ]
        )
    return found


def answer_from_words(scene, question):
    """Find the answer without what made it."""
    text = question.text.removesuffix(SHORT_ANSWER)
    meant = things_meant(scene, text)
    if question.kind == "count":
        return str(len(meant[0]))
    if question.kind == "presence":
        return "yes" if meant[0] else "no"
    assert all(len(things) == 1 for things in meant)
    if question.kind in ("color", "shape", "character"):
        return getattr(meant[0][0], question.kind)
    (first,), (second,) = meant
    if text.startswith(("On which side", "Compared with")):
        first, second = second, first
    if question.kind == "size":
        return "larger" if first.size > second.size else "smaller"
    if "left" in text:
        return "left" if first.x < second.x else "right"
    return "above" if first.y < second.y else "below"


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_follows_from_words_and_scene_alone(kind, scenes):
    asked = 0
    for scene in scenes:
        question = ask(scene, stream(scene.seed, "words"), kind)
        if question.kind == "description":
            assert question.answer == describe(scene)
        else:
            assert question.answer == answer_from_words(scene, question), question.text
        asked += question.kind == kind
        assert question.named or question.answer == "no"
    assert asked > 0.7 * len(scenes)


def test_questions_are_phrased_in_several_ways_and_some_instructed(scenes):
    asked = [ask(scene, stream(scene.seed, "words"), kind) for scene in scenes for kind in KINDS]
    short = [question for question in asked if question.kind != "description"]
    instructed = sum(question.text.endswith(SHORT_ANSWER) for question in short) / len(short)
    assert 0.35 < instructed < 0.45
    assert all(len(templates) >= 3 for templates in TEMPLATES.values())


def test_guessing_the_most_frequent_answer_is_not_worth_much(scenes):
    for kind, most in (
        ("presence", 0.55),
        ("position", 0.35),
        ("size", 0.6),
        ("count", 0.45),
        ("character", 0.15),
    ):
        answers = Counter(
            question.answer
            for scene in scenes
            if (question := ask(scene, stream(scene.seed, "words"), kind)).kind == kind
        )
        assert max(answers.values()) / sum(answers.values()) < most


def test_several_questions_differ(scenes):
    several = ask_several(scenes[0], stream(1, "words"), 8, KINDS)
    assert len({(one.kind, one.answer, one.named) for one in several}) == len(several) == 8


def test_descriptions_are_scored_by_what_they_name():
    right = "a red star, a blue ring and a blue ring"
    assert named_objects(right) == {"red star": 1, "blue ring": 2}
    assert description_score(right, right) == 1
    assert description_score("A blue ring.", right) == pytest.approx(2 * 1 / 4)
    assert description_score("a blue ring, a blue ring, a blue ring", right) == pytest.approx(2 * 2 / 6)
    assert description_score("nothing", right) == 0


def test_the_benchmark_asks_the_kinds_in_turn_and_knows_what_each_is_about():
    questions = BENCHMARK.load(None, "")
    assert len(questions) == QUESTIONS >= 4_000
    assert len({question.unit for question in questions}) == QUESTIONS
    assert set(Counter(question.group for question in questions)) == set(KINDS)
    about = next(question for question in questions if question.group == "position").about
    assert about(GRID, GRID).shape == (GRID, GRID)
    assert 1 < about(GRID, GRID).sum() < 80
    assert about(16, 16).shape == (16, 16)
    assert BENCHMARK.load(None, "validation")[0].unit == str(VALIDATION[0])


@pytest.mark.parametrize(
    ("kind", "said", "points"),
    [("character", "{}.", 1), ("character", "Q", 0), ("count", " {} ", 1), ("description", "{}", 1)],
)
def test_marks(kind, said, points):
    question = next(question for question in BENCHMARK.load(None, "") if question.group == kind)
    response = Response(question, said.format(question.target))
    assert BENCHMARK.mark(response).points == points
    assert BENCHMARK.mark(Response(question, response.text, error="no memory")).points == 0


def test_things_of_the_easy_pictures_carry_no_character():
    assert Thing("red", "star", 1, 1, 30, 0).character == ""
