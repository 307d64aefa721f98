"""How sure a score is: 95% intervals of scores, and of differences between two runs on the same questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from llava.eval.benchmark import Mark

Headline = Callable[[Sequence[Mark]], float]
Z = 1.96  # standard errors on both sides that hold 95%
# A prime: questions whose kinds follow each other in turn are spread over all groups, so that the difference
# between kinds is not taken for chance. (With 100, eight kinds in turn made intervals three times as wide.)
MOST_GROUPS = 101


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and its 95% interval.

    Attributes:
        value: The number.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def estimate(marks: Sequence[Mark], headline: Headline, best: float) -> Estimate:
    """Return a score with Wilson's interval for as many independent questions as its variance tells of.

    The variance is that of a jackknife, which leaves out groups of units: it holds for any headline (F1, sums
    of accuracies, ratios) and knows that questions about one image are not independent. Wilson's interval
    stays within the scale, and has a width even if every answer is right.

    Args:
        marks: Of all questions.
        headline: Makes the score of marks.
        best: The score without mistakes; the worst is 0.
    """
    value = headline(marks)
    share = value / best
    error = _standard_error(_left_out(marks, headline)) / best
    if not 0 <= share <= 1:  # a ratio to another model's score may be above its scale
        return Estimate(value, value - Z * error * best, value + Z * error * best)
    spread = share * (1 - share)
    count = spread / error**2 if error > 0 and spread > 0 else len({mark.unit for mark in marks})
    center = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(spread / count + Z**2 / (4 * count**2))
    return Estimate(value, best * max(0.0, center - half), best * min(1.0, center + half))


def paired_difference(first: Sequence[Mark], second: Sequence[Mark], headline: Headline) -> Estimate:
    """Return how much higher the second score is than the first, of the same questions in the same order.

    Args:
        first: Marks of one run.
        second: Marks of another.
        headline: Makes the score of marks.
    """
    value = headline(second) - headline(first)
    pairs = zip(_left_out(first, headline), _left_out(second, headline), strict=True)
    error = _standard_error([other - one for one, other in pairs])
    return Estimate(value, value - Z * error, value + Z * error)


def _left_out(marks: Sequence[Mark], headline: Headline) -> list[float]:
    """Return the headlines without each of up to `MOST_GROUPS` groups of units."""
    units = {unit: number for number, unit in enumerate(dict.fromkeys(mark.unit for mark in marks))}
    count = min(len(units), MOST_GROUPS)
    if count < 2:
        return []
    groups = [units[mark.unit] % count for mark in marks]
    return [
        headline([mark for mark, group in zip(marks, groups, strict=True) if group != left_out])
        for left_out in range(count)
    ]


def _standard_error(left_out: Sequence[float]) -> float:
    """Return the standard error that a jackknife's values tell of; 0 of none."""
    if not left_out:
        return 0.0
    mean = fmean(left_out)
    return math.sqrt((len(left_out) - 1) / len(left_out) * sum((value - mean) ** 2 for value in left_out))
