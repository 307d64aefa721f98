"""How cost grows with visual tokens and with the batch, and where reducing them stops paying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

from llava.bench.measure import Setting
from llava.bench.report import BASELINE, FIRST_TOKEN, Measured, Report

REDUCED = "TRIM:0.21"  # what the baseline is compared with
STEPS = 6  # between one visual token and all of them
WORTH_IT = 0.05  # of the time to the first token; what saves less is not worth a change


@dataclass(frozen=True, slots=True)
class Line:
    """A line through measured points.

    Attributes:
        start: Its height at 0.
        slope: What one more adds.
        fit: Share of the points' variance that it explains (R²).
    """

    start: float
    slope: float
    fit: float

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]]) -> Line:
        """Fit a line by least squares to two or more points."""
        across, heights = zip(*points, strict=True)
        slope, start = linear_regression(across, heights)
        middle = fmean(heights)
        missed = sum((height - start - slope * x) ** 2 for x, height in points)
        spread = sum((height - middle) ** 2 for height in heights)
        return cls(start, slope, 1 - missed / spread if spread else 1.0)

    def at(self, x: float) -> float:
        """Return its height somewhere."""
        return self.start + self.slope * x


@dataclass(frozen=True, slots=True)
class Payback:
    """What reducing costs and saves at batch 1.

    Attributes:
        extra_ms: Of the text tower and the selection, which no reduction does without.
        token_ms: What one visual token adds to the first token's time.
        all_tokens: Visual tokens without reduction.
        saves_below: Fewer visual tokens than these save time in all.
        halving_saves_above: Down to these another halving saves `WORTH_IT` of the first token's time.
    """

    extra_ms: float
    token_ms: float
    all_tokens: float
    saves_below: float
    halving_saves_above: float


def growth_settings(patches_per_side: int, batches: Sequence[int]) -> list[Setting]:
    """Return what is measured: grids of means from one token to all, then batches.

    Averaging over a grid gives any square number of tokens and itself takes next to no time.
    """
    sides = sorted({max(1, round(patches_per_side * step / STEPS)) for step in range(STEPS)})
    grids = [Setting(f"Pool:{side**2}", 1) for side in sides]
    return [
        *grids,
        *(Setting(name, batch) for name in (BASELINE, REDUCED) for batch in sorted({1, *batches})),
    ]


def by_tokens(report: Report) -> list[Measured]:
    """Return the rows that differ in visual tokens alone, by their number."""
    rows = [row for row in report.rows if row.batch == 1 and row.reduction != REDUCED]
    return sorted(rows, key=lambda row: row.visual_tokens)


def by_batch(report: Report, reduction: str) -> list[Measured]:
    """Return the rows of a reduction, by batch size."""
    return sorted((row for row in report.rows if row.reduction == reduction), key=lambda row: row.batch)


def first_token_ms(row: Measured) -> float:
    """Return the median milliseconds to the first token."""
    return row.milliseconds[FIRST_TOKEN].median


MEASURES: dict[str, Callable[[Measured], float | None]] = {
    "first token, ms": first_token_ms,
    "KV cache, MiB": lambda row: row.cache_mib,
    "peak memory, MiB": lambda row: row.peak_mib,
}
"""What grows."""


def points(
    rows: Sequence[Measured], across: Callable[[Measured], float], measure: str
) -> list[tuple[float, float]]:
    """Return the points of one of the `MEASURES`; none where it is not counted."""
    heights = [(across(row), MEASURES[measure](row)) for row in rows]
    return [(x, height) for x, height in heights if height is not None]


def payback(report: Report) -> Payback | None:
    """Return where reducing pays; None where the first token does not get slower with visual tokens."""
    baseline, reduced = report.row(BASELINE, 1), report.row(REDUCED, 1)
    assert baseline is not None and reduced is not None
    line = Line.through([(row.visual_tokens, first_token_ms(row)) for row in by_tokens(report)])
    if line.slope <= 0:
        return None
    extra = reduced.milliseconds["text"].median + reduced.milliseconds["selection"].median
    # Halving n tokens saves slope * n / 2 of what a reduced prompt takes, start + extra + slope * n.
    worth_it = 2 * WORTH_IT
    return Payback(
        extra_ms=extra,
        token_ms=line.slope,
        all_tokens=baseline.visual_tokens,
        saves_below=max(0.0, baseline.visual_tokens - extra / line.slope),
        halving_saves_above=worth_it * (line.start + extra) / (line.slope * (1 - worth_it)),
    )
