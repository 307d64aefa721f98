"""What came of a comparison: Markdown, CSV, and a curve of accuracy over visual tokens."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from llava.compare.asking import Outcome
from llava.eval.benchmark import Mark
from llava.eval.evaluate import histogram
from llava.eval.figures import draw_png
from llava.eval.intervals import Estimate, estimate, paired_difference
from llava.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE, REFERENCE = "none", "TRIM"
NOTHING = "-"
MARKERS = "osD^v*P"


def _percent(marks: Sequence[Mark]) -> float:
    return 100 * fmean(mark.points for mark in marks)


def marks_of(outcome: Outcome) -> list[Mark]:
    """Return the marks of an outcome; every question is about a picture of its own."""
    return [Mark(str(number), points) for number, points in enumerate(outcome.points)]


def rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Return a line per setting: accuracy with its interval, paired differences, tokens and times."""
    by_setting = {outcome.setting: outcome for outcome in outcomes if outcome.error is None}
    kinds = sorted({kind for outcome in outcomes for kind in outcome.kinds})
    return [_row(outcome, by_setting, kinds) for outcome in outcomes]


def _row(outcome: Outcome, others: dict[str, Outcome], kinds: Sequence[str]) -> dict[str, str]:
    """Return the cells of one setting; what it is compared with has the same questions."""
    columns = ["visual tokens", "accuracy", f"less {BASELINE}", f"less {REFERENCE}", *kinds]
    columns += ["histogram", "reduction ms", "prefill ms"]
    if outcome.error is not None:
        return {"setting": outcome.setting, **dict.fromkeys(columns, NOTHING), "accuracy": outcome.error}
    score = estimate(marks_of(outcome), _percent, 100)
    budget = outcome.setting.partition(":")[2]
    cells = [f"{outcome.mean_tokens:.1f}", _interval(score)]
    for other in (BASELINE, f"{REFERENCE}:{budget}"):
        cells.append(_difference(outcome, others.get(other)))
    right: dict[str, list[int]] = defaultdict(list)
    for kind, points in zip(outcome.kinds, outcome.points, strict=True):
        right[kind].append(points)
    cells += [f"{100 * fmean(right[kind]):.1f}" for kind in kinds]
    cells += [_bars(outcome.visual_tokens), f"{outcome.reduction_ms:.1f}", f"{outcome.prefill_ms:.1f}"]
    return {"setting": outcome.setting, **dict(zip(columns, cells, strict=True))}


def _interval(score: Estimate) -> str:
    return f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f})"


def _difference(outcome: Outcome, other: Outcome | None) -> str:
    """Return the paired difference to another setting; a star says that its interval leaves out 0."""
    if other is None or other.setting == outcome.setting:
        return NOTHING
    found = paired_difference(marks_of(other), marks_of(outcome), _percent)
    star = "*" if found.low > 0 or found.high < 0 else ""
    return f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f}){star}"


def _bars(counts: Sequence[int]) -> str:
    """Draw how the numbers of tokens are spread, from the fewest to the most."""
    bins = histogram(counts)
    if len(bins) == 1:
        return str(counts[0])
    most = max(one["questions"] for one in bins)
    bars = "".join(" ▁▂▃▄▅▆▇█"[-(-8 * one["questions"] // most)] for one in bins)
    return f"{min(counts)} {bars} {max(counts)}"


def as_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the table."""
    lines = rows(outcomes)
    header = list(lines[0])
    return markdown_table(header, [[line[name] for name in header] for line in lines])


def as_csv(outcomes: Sequence[Outcome]) -> str:
    """Return the same as CSV."""
    lines = rows(outcomes)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def draw(outcomes: Sequence[Outcome], path: Path) -> bool:
    """Draw accuracy over visual tokens, a line per method; tell whether matplotlib is there to do it."""

    def fill(figure: Figure) -> None:
        from matplotlib import colormaps

        axes = figure.subplots()
        lines: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in outcomes:
            if outcome.error is None:
                lines[outcome.setting.partition(":")[0]].append(outcome)
        for number, (method, own) in enumerate(lines.items()):
            color, marker = colormaps["tab20"](number % 20), MARKERS[number % len(MARKERS)]
            own.sort(key=lambda outcome: outcome.mean_tokens)
            scores = [estimate(marks_of(outcome), _percent, 100) for outcome in own]
            tokens = [outcome.mean_tokens for outcome in own]
            axes.plot(tokens, [score.value for score in scores], marker=marker, color=color, label=method)
            low, high = [score.low for score in scores], [score.high for score in scores]
            axes.fill_between(tokens, low, high, alpha=0.1, color=color)
        axes.set_xlabel("visual tokens of an image, on average")
        axes.set_ylabel("right answers, %")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.legend(fontsize="small", ncols=2)

    return draw_png(path, fill, figsize=(8, 5))
