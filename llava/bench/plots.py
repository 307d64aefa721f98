"""Reports of ``llava bench`` as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.bench import growth
from llava.bench.growth import Line
from llava.bench.report import BASELINE, DECODE, FIRST_TOKEN, Measured, Report, Spread
from llava.bench.stages import FIRST_TOKEN as STAGES
from llava.bench.tables import formula, heading, title
from llava.eval.figures import draw_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(report: Report, path: Path) -> bool:
    """Draw a report, where matplotlib is installed; return whether it is.

    Args:
        report: What was measured.
        path: PNG file.

    Raises:
        UserError: If it cannot be written.
    """

    def fill(figure: Figure) -> None:
        (_draw_growth if report.kind == "growth" else _draw_answers)(figure, report)
        figure.suptitle(heading(report))

    return draw_png(path, fill)


def _draw_answers(figure: Figure, report: Report) -> None:
    """Draw the stages before the first token on top of each other, and below it the steps of decoding."""
    batches = report.batches
    figure.set_size_inches(6 * len(batches), 7)
    grid = figure.subplots(2, len(batches), squeeze=False)
    for column, batch in enumerate(batches):
        rows = [row for row in report.rows if row.batch == batch]
        first, decode = grid[0][column], grid[1][column]
        _stack_stages(first, rows)
        first.set_title(f"batch {batch}")
        names = [row.reduction for row in rows]
        steps = [row.milliseconds[DECODE] for row in rows]
        decode.bar(names, [step.median for step in steps], yerr=_ranges(steps), capsize=4, color="tab:gray")
        decode.set_ylabel(f"{title(DECODE)}, ms")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(STAGES))


def _stack_stages(axes: Axes, rows: Sequence[Measured]) -> None:
    names, below = [row.reduction for row in rows], [0.0] * len(rows)
    totals = [row.milliseconds[FIRST_TOKEN] for row in rows]
    for stage in STAGES:
        heights = [row.milliseconds[stage].median if stage in row.milliseconds else 0.0 for row in rows]
        axes.bar(names, heights, bottom=below, label=title(stage))
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.errorbar(
        names, [total.median for total in totals], _ranges(totals), fmt="none", color="black", capsize=4
    )
    axes.set_ylabel(f"{title(FIRST_TOKEN)}, ms")


def _ranges(figures: Sequence[Spread]) -> list[list[float]]:
    """Return how far below and above their medians figures reach."""
    return [[one.median - one.low for one in figures], [one.high - one.median for one in figures]]


def _draw_growth(figure: Figure, report: Report) -> None:
    """Draw what grows with visual tokens on the left and with the batch on the right, with fitted lines."""
    figure.set_size_inches(11, 10)
    grid = figure.subplots(len(growth.MEASURES), 2, squeeze=False)
    for (tokens, batch), measure in zip(grid, growth.MEASURES, strict=True):
        _draw_line(tokens, growth.by_tokens(report), lambda row: row.visual_tokens, measure, "batch 1")
        for name in (BASELINE, growth.REDUCED):
            _draw_line(batch, growth.by_batch(report, name), lambda row: row.batch, measure, name)
        tokens.set_ylabel(measure)
        for axes in (tokens, batch):
            axes.margins(y=0.2)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend()
    grid[-1][0].set_xlabel("visual tokens")
    grid[-1][1].set_xlabel("answers in the batch")


def _draw_line(
    axes: Axes,
    rows: Sequence[Measured],
    across: Callable[[Measured], float],
    measure: str,
    name: str,
) -> None:
    points = growth.points(rows, across, measure)
    if not points:
        axes.text(0.5, 0.5, "not counted on this device", transform=axes.transAxes, ha="center")
        return
    line = Line.through(points)
    places = [points[0][0], points[-1][0]]
    label = f"{name}: {formula(line)} each (R² {line.fit:.3f})"
    (drawn,) = axes.plot(places, [line.at(x) for x in places], label=label)
    axes.scatter(*zip(*points, strict=True), color=drawn.get_color(), zorder=3)
