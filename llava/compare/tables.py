"""What came of a comparison: Markdown, CSV, and a curve of the score over visual tokens."""

from __future__ import annotations

import csv
import io
import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from llava.compare.asking import NO_IMAGE, Outcome
from llava.eval.benchmark import Benchmark
from llava.eval.evaluate import histogram
from llava.eval.figures import draw_png
from llava.eval.files import move_aside, write_text
from llava.eval.intervals import Estimate, estimate, paired_difference
from llava.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

COMPARISON = "comparison.md"
BASELINE, REFERENCE = "none", "TRIM"
NOTHING = "-"
MARKERS = "osD^v*P"
KEPT = "kept of what is asked about, %"
# Left out where no setting has one.
OPTIONAL = (KEPT, f"less {REFERENCE}")
# Reading and encoding an image is done once for all settings that find it in the cache.
STAGES = ("reduction_ms", "prefill_ms", "decode_ms")
# Of a benchmark with more metrics beside its headline (POPE, MME), the headline alone is shown.
MOST_METRICS = 8


@dataclass(frozen=True, slots=True)
class Table:
    """All settings on one benchmark.

    Attributes:
        benchmark: How marks become scores.
        outcomes: Of the settings.
        asked: What was asked of which model.
    """

    benchmark: Benchmark
    outcomes: Sequence[Outcome]
    asked: str = ""

    def rows(self) -> list[dict[str, str]]:
        """Return a line per setting: score with its interval, paired differences, tokens and times."""
        met = {outcome.setting: outcome for outcome in self.outcomes if outcome.error is None}
        metrics = [list(self.benchmark.metrics(outcome.marks)) for outcome in met.values()]
        headline, *others = metrics[0] if metrics else ["score"]
        others = others if len(others) <= MOST_METRICS else []
        rows = [self._row(outcome, met, headline, others) for outcome in self.outcomes]
        empty = [name for name in OPTIONAL if all(row[name] == NOTHING for row in rows)]
        return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]

    def _row(
        self, outcome: Outcome, met: dict[str, Outcome], headline: str, others: Sequence[str]
    ) -> dict[str, str]:
        """Return the cells of one setting; what it is compared with has the same questions."""
        columns = ["visual tokens", headline, f"less {BASELINE}", f"less {REFERENCE}", *others]
        columns += [KEPT, "histogram", *(stage.replace("_", " ") for stage in STAGES)]
        if outcome.error is not None:
            return {"setting": outcome.setting, **dict.fromkeys(columns, NOTHING), headline: outcome.error}
        budget = outcome.setting.partition(":")[2]
        metrics = self.benchmark.metrics(outcome.marks)
        kept = NOTHING if outcome.about_kept is None else f"{100 * outcome.about_kept:.1f}"
        failed = f", {outcome.failures} failed" * (outcome.failures > 0)
        cells = [
            f"{outcome.mean_tokens:.1f}",
            _interval(self.score(outcome)) + failed,
            *(self._difference(outcome, met.get(other)) for other in (BASELINE, f"{REFERENCE}:{budget}")),
            *(f"{metrics[name]:.1f}" for name in others),
            *(kept, _bars(outcome.visual_tokens)),
            *(f"{outcome.milliseconds[stage]:.1f}" for stage in STAGES),
        ]
        return {"setting": outcome.setting, **dict(zip(columns, cells, strict=True))}

    def score(self, outcome: Outcome) -> Estimate:
        """Return the headline with its interval."""
        return estimate(outcome.marks, self.benchmark.headline, self.benchmark.best)

    def _difference(self, outcome: Outcome, other: Outcome | None) -> str:
        """Return the paired difference to another setting."""
        if other is None or other.setting == outcome.setting:
            return NOTHING
        return starred(paired_difference(other.marks, outcome.marks, self.benchmark.headline))

    def as_markdown(self, lines: Sequence[dict[str, str]]) -> str:
        """Return the rows as a table under the benchmark's title and what was asked."""
        header = list(lines[0])
        table = markdown_table(header, [[line[name] for name in header] for line in lines])
        return "\n\n".join(filter(None, [f"### {self.benchmark.title}", self.asked, table]))

    def draw(self, path: Path) -> bool:
        """Draw the score over visual tokens, a line per method; tell whether matplotlib is there to do it."""
        return draw_png(path, self._fill, figsize=(8, 5))

    def _fill(self, figure: Figure) -> None:
        from matplotlib import colormaps

        axes = figure.subplots()
        lines: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in self.outcomes:
            if outcome.setting == NO_IMAGE and outcome.error is None:
                axes.axhline(self.score(outcome).value, color="gray", linestyle=":", label=NO_IMAGE)
            elif outcome.error is None:
                lines[outcome.setting.partition(":")[0]].append(outcome)
        for number, (method, own) in enumerate(lines.items()):
            color, marker = colormaps["tab20"](number % 20), MARKERS[number % len(MARKERS)]
            own.sort(key=lambda outcome: outcome.mean_tokens)
            scores = [self.score(outcome) for outcome in own]
            tokens = [outcome.mean_tokens for outcome in own]
            axes.plot(tokens, [score.value for score in scores], marker=marker, color=color, label=method)
            low, high = [score.low for score in scores], [score.high for score in scores]
            axes.fill_between(tokens, low, high, alpha=0.1, color=color)
        axes.set_xlabel("visual tokens of an image, on average")
        axes.set_ylabel(self.benchmark.title)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.legend(fontsize="small", ncols=2)


def as_csv(lines: Sequence[dict[str, str]]) -> str:
    """Return rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def starred(difference: Estimate) -> str:
    """Write a difference with its interval; a star says that this leaves out 0."""
    star = "*" if difference.low > 0 or difference.high < 0 else ""
    return f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f}){star}"


def write_tables(tables: Sequence[Table], folder: Path) -> str:
    """Write all tables in Markdown, and each as CSV and, where matplotlib is installed, as a curve.

    Those of another comparison in the same folder are kept under other names.

    Args:
        tables: Of benchmarks, with the same settings in the same order.
        folder: Where they are written.

    Returns:
        The Markdown.

    Raises:
        UserError: If they cannot be written.
    """
    rows = [table.rows() for table in tables]
    texts = [table.as_markdown(lines) for table, lines in zip(tables, rows, strict=True)]
    if len(tables) > 1:
        texts.append(describe_average(tables))
    text = "\n\n".join(texts)
    path = folder / COMPARISON
    if path.is_file() and outline(path.read_text(encoding="utf-8", errors="replace")) != outline(text):
        kept = move_aside(path, *sorted(folder.glob("*.csv")), *sorted(folder.glob("*.png")))
        logger.warning("kept what an earlier comparison has found: %s", ", ".join(map(str, kept)))
    for table, lines in zip(tables, rows, strict=True):
        write_text(folder / f"{table.benchmark.name}.csv", as_csv(lines))
        table.draw(folder / f"{table.benchmark.name}.png")
    write_text(path, text + "\n")
    return text


def outline(text: str) -> str:
    """Return what a comparison is of: its lines, without the figures of those that are rows of a table."""
    lines = text.splitlines()
    return "\n".join(line.split("|")[1].strip() if line.startswith("|") else line for line in lines)


def describe_average(tables: Sequence[Table]) -> str:
    """Return all benchmarks in one table: scores, and their mean relative to no reduction in percent.

    A benchmark on which no reduction scores 0 does not enter the mean, and a setting that cannot be met on
    one of the others has none.

    Args:
        tables: With the same settings in the same order.
    """
    lines = []
    # The first setting is no reduction; where even that has failed, there are no marks, and the score is 0.
    wholes = [table.benchmark.headline(table.outcomes[0].marks) for table in tables]
    for of_setting in zip(*(table.outcomes for table in tables), strict=True):
        scores = [
            None if outcome.error is not None else table.benchmark.headline(outcome.marks)
            for table, outcome in zip(tables, of_setting, strict=True)
        ]
        shares = [
            None if score is None else score / whole
            for score, whole in zip(scores, wholes, strict=True)
            if whole
        ]
        known = [share for share in shares if share is not None]
        tokens = [outcome.mean_tokens for outcome in of_setting if outcome.error is None]
        lines.append(
            [
                of_setting[0].setting,
                f"{fmean(tokens):.1f}" if tokens else NOTHING,
                *(NOTHING if score is None else f"{score:.1f}" for score in scores),
                f"{100 * fmean(known):.1f}" if known and len(known) == len(shares) else NOTHING,
            ]
        )
    header = ["setting", "visual tokens", *(table.benchmark.title for table in tables)]
    return f"### All\n\n{markdown_table([*header, f'% of {BASELINE}'], lines)}"


def _interval(score: Estimate) -> str:
    return f"{score.value:.1f} ({score.low:.1f} to {score.high:.1f})"


def _bars(counts: Sequence[int]) -> str:
    """Draw how the numbers of tokens are spread, from the fewest to the most."""
    bins = histogram(counts)
    if not bins:
        return NOTHING
    if len(bins) == 1:
        return str(counts[0])
    most = max(one["questions"] for one in bins)
    bars = "".join("·▁▂▃▄▅▆▇█"[-(-8 * one["questions"] // most)] for one in bins)
    return f"{min(counts)} {bars} {max(counts)}"
