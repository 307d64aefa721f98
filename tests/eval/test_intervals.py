"""Intervals of scores: known formulas where there are some, and honest ones at the ends of the scale."""

import math
import random

import pytest

from llava.eval.benchmark import Mark, accuracy
from llava.eval.benchmarks.pope import metrics as pope_metrics
from llava.eval.intervals import estimate, paired_difference


def headline(marks):
    return accuracy(marks)["accuracy"]


def marks_of(points, per_unit=1):
    return [Mark(str(number // per_unit), float(value)) for number, value in enumerate(points)]


def test_independent_questions_have_wilsons_interval():
    # 60 of 80 right; the jackknife's variance of a mean is p(1-p)/(n-1), so that n is 79.
    found = estimate(marks_of([1] * 60 + [0] * 20), headline, 100)
    p, n, z = 0.75, 79, 1.96
    center, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert found.value == 75
    assert found.low == pytest.approx(100 * (center - half) / (1 + z * z / n), abs=1e-9)
    assert found.high == pytest.approx(100 * (center + half) / (1 + z * z / n), abs=1e-9)


def test_questions_about_one_image_that_agree_count_as_one():
    alone = estimate(marks_of([1, 0] * 20), headline, 100)
    repeated = estimate(
        marks_of([value for value in [1, 0] * 20 for _ in range(6)], per_unit=6), headline, 100
    )
    assert (repeated.low, repeated.high) == pytest.approx((alone.low, alone.high))


def test_a_score_without_mistakes_is_not_certain():
    found = estimate(marks_of([1] * 30), headline, 100)
    assert found.value == found.high == 100
    assert found.low == pytest.approx(100 / (1 + 1.96**2 / 30))  # Wilson's lower end for p = 1


def test_a_score_of_another_scale_stays_within_it():
    found = estimate(marks_of([1] * 29 + [0]), lambda marks: 20 * headline(marks), 2000)
    assert found.value == pytest.approx(2000 * 29 / 30)
    assert 0 < found.low < found.value < found.high <= 2000


def test_an_f1_has_an_interval_that_covers_it():
    marks = [Mark(str(i), float(i % 5 > 0), "random", "yes" if i % 2 else "no") for i in range(200)]
    found = estimate(marks, lambda some: pope_metrics(some)["f1"], 100)
    assert found.low < found.value < found.high
    assert 5 < found.high - found.low < 20


def test_one_question_alone_tells_little():
    found = estimate(marks_of([1]), headline, 100)
    assert found.low < 25
    assert found.high == 100


def test_paired_differences_are_surer_than_the_scores():
    right = [number % 3 > 0 for number in range(300)]
    better = [value or number % 30 == 0 for number, value in enumerate(right)]
    found = paired_difference(marks_of(right), marks_of(better), headline)
    assert found.value == pytest.approx(10 / 3)
    assert 0 < found.low < found.high < 6  # the scores' own intervals are 10 points wide


@pytest.mark.parametrize("kinds", [2, 3, 4, 5, 8, 10, 20])
def test_kinds_that_are_asked_in_turn_are_no_chance(kinds):
    """Half of the kinds are mostly right, half mostly wrong; the order of the questions changes little."""
    chance = random.Random(0)
    points = [chance.random() < (0.9 if number % kinds < kinds / 2 else 0.2) for number in range(4000)]
    in_turn = estimate(marks_of(points), headline, 100)
    mixed = estimate(marks_of(chance.sample(points, len(points))), headline, 100)
    # Knowing the kinds makes the score a little surer. Seen: 0.64 to 0.86 times as wide.
    assert 0.5 < (in_turn.high - in_turn.low) / (mixed.high - mixed.low) < 1.1


def test_intervals_hold_as_often_as_they_say():
    """200 samples of 60 images with 3 questions each, images of two kinds: 95% must cover 70%; seen: 190."""
    chance = random.Random(0)
    covered = 0
    for _ in range(200):
        points = []
        for _ in range(60):
            rate = chance.choice([0.5, 0.9])
            points += [chance.random() < rate for _ in range(3)]
        found = estimate(marks_of(points, per_unit=3), headline, 100)
        covered += found.low <= 70 <= found.high
    assert covered >= 180
