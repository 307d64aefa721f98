"""Runs beside each other: scores, what differs from a baseline and how surely, scores over visual tokens."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Benchmark, Mark
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.figures import draw_png
from llava.eval.files import (
    INTEGER,
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    TRUTH,
    JsonObject,
    Kind,
    read_json,
    require_keys,
    write_text,
)
from llava.eval.intervals import paired_difference
from llava.markdown import markdown_table
from llava.utils import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

KEYS: dict[str, Kind] = {
    **dict.fromkeys(("benchmark", "title", "id", "split", "date"), TEXT),
    **dict.fromkeys(("questions", "questions_available", "failures"), INTEGER),
    **dict.fromkeys(("settings", "cost"), OBJECT),
    **{"score": OBJECT, "judge": (str, dict), "miniature": TRUTH, "marks": [LIST]},
}
WITHOUT_JUDGE = ("score", "judge")  # which may be null
MARK: tuple[Kind, ...] = (TEXT, NUMBER, TEXT, TEXT)
ALL_FAILED = "every question failed"
KINDS = {False: "Benchmarks", True: "Miniatures of the shapes world"}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the tables: a benchmark, or a part of one.

    Attributes:
        benchmark: The benchmark.
        part: A split that is not the default, or a limit; empty for what is usual.
    """

    benchmark: Benchmark
    part: str = ""

    @classmethod
    def of(cls, result: JsonObject) -> Row:
        """Return the row of a result."""
        benchmark = next(item for item in BENCHMARKS if item.name == result["benchmark"])
        parts = [] if benchmark.is_default(result["split"]) else [result["split"]]
        if result["questions"] < result["questions_available"]:
            parts.append(f"first {result['questions']} of {result['questions_available']}")
        return cls(benchmark, ", ".join(parts))

    @property
    def title(self) -> str:
        """What stands at the beginning of the row."""
        return ", ".join(filter(None, [self.benchmark.title, self.part]))


@dataclass(frozen=True, slots=True)
class Run:
    """The results of one id on one kind of data.

    Attributes:
        id: Of the run.
        results: By row.
    """

    id: str
    results: dict[Row, JsonObject]

    @property
    def reduction(self) -> str:
        """The setting of the reducer."""
        return " / ".join(sorted({result["settings"]["reduction"] for result in self.results.values()}))

    @property
    def visual_tokens(self) -> float | None:
        """Mean visual tokens of an image, every benchmark counting the same."""
        tokens = [result["cost"]["visual_tokens"] for result in self.results.values() if result["cost"]]
        return fmean(tokens) if tokens else None

    def score(self, row: Row) -> float | None:
        """Return the score in a row, if there is one."""
        result = self.results.get(row)
        return None if result is None or result["score"] is None else result["score"]["value"]

    def relative_to(self, baseline: Run) -> tuple[float, int] | None:
        """Return the mean, in percent, of this run's scores over those of another, and of how many rows.

        Rows count where both have answered the same questions, and the same judge has scored them.
        """
        shares = []
        for row, result in self.results.items():
            own, other = self.score(row), baseline.score(row)
            if own is not None and other and why_not_paired(result, baseline.results[row]) is None:
                shares.append(own / other)
        return (100 * fmean(shares), len(shares)) if shares else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs on one kind of data.

    Attributes:
        title: Of the kind.
        runs: At least one.
        baseline: The one that the others are compared with.
    """

    title: str
    runs: list[Run]
    baseline: Run


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``llava eval report``."""
    parser.add_argument("results", nargs="+", type=Path, help="JSON results, or folders of them")
    parser.add_argument(
        "--baseline", metavar="ID", help="compare with this run (default: one with reduction none)"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("results/report"), help="writes OUTPUT.md and OUTPUT.png"
    )


def run_report(options: argparse.Namespace) -> None:
    """Print and write a report.

    Raises:
        UserError: If there are no results, a file is none, or the report cannot be written.
    """
    results = read_results(options.results)
    known = list(dict.fromkeys(result["id"] for result in results))
    if options.baseline not in (None, *known):
        raise UserError(f"there is no run {options.baseline!r}; accepted: {', '.join(known)}")
    comparisons = [
        Comparison(title, runs, choose_baseline(runs, options.baseline))
        for kind, title in KINDS.items()
        if (runs := collect(results, kind))
    ]
    for item in comparisons:
        if options.baseline not in (None, item.baseline.id):
            logger.warning(
                "%s: there is no run %r, so they are compared with %r",
                *(item.title, options.baseline, item.baseline.id),
            )
    text = "\n".join(map(describe, comparisons))
    print(printable(text))
    # A name such as llava-v1.5-7b has a dot and no suffix.
    write_text(options.output.with_name(f"{options.output.name}.md"), text)
    draw(comparisons, options.output.with_name(f"{options.output.name}.png"))


def read_results(paths: Sequence[Path]) -> list[JsonObject]:
    """Read results, in folders all that are there; what is damaged in a folder is passed over.

    Raises:
        MissingFileError: If there are none.
        UserError: If a file that was named is none.
    """
    results = []
    for path in paths:
        if path.is_dir():
            results += [item for file in sorted(path.rglob("*.json")) if (item := _found_result(file))]
        else:
            results.append(read_result(path))
    if not results:
        raise MissingFileError(f"there are no results in {', '.join(map(str, paths))}")
    return results


def read_result(path: Path) -> JsonObject:
    """Read a result of ``llava eval``.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If it is no such result.
    """
    item = read_json(path)
    if not _has_keys(item):
        raise UserError(f"{path} is no result of llava eval: it lacks one of {', '.join(KEYS)}")
    optional = [f"{key}?" if key in WITHOUT_JUDGE else key for key in KEYS]
    require_keys(item, optional, str(path), **KEYS)
    if item["benchmark"] not in {benchmark.name for benchmark in BENCHMARKS}:
        raise UserError(f"{path} is about {item['benchmark']!r:.80}, which is no benchmark of this version")
    _require_numbers(item["score"], ("value", "low", "high"), f"{path}, 'score'")
    _require_numbers(item["cost"], ("visual_tokens",), f"{path}, 'cost'")
    require_keys(
        item["settings"], ("reduction", "questions"), f"{path}, 'settings'", reduction=TEXT, questions=TEXT
    )
    if isinstance(item["judge"], dict):
        kinds = {"judge": TEXT, "prompt_hash": TEXT, "failures": INTEGER}
        require_keys(item["judge"], tuple(kinds), f"{path}, 'judge'", **kinds)
    for number, mark in enumerate(item["marks"]):
        named = dict(zip(Mark.__slots__, mark, strict=False))
        require_keys(
            named, Mark.__slots__, f"{path}, mark {number}", **dict(zip(Mark.__slots__, MARK, strict=True))
        )
    return item


def _require_numbers(item: JsonObject | None, names: Sequence[str], where: str) -> None:
    """Make sure that an object, if it is there and not empty, has numbers."""
    if item:
        require_keys(item, names, where, **dict.fromkeys(names, NUMBER))


def _found_result(path: Path) -> JsonObject | None:
    """Return a result that nobody has named; None if it is none, with a warning if it was to be one."""
    try:
        return read_result(path) if _has_keys(read_json(path)) else None
    except UserError as error:
        logger.warning("passed over: %s", error)
        return None


def collect(results: Sequence[JsonObject], miniature: bool) -> list[Run]:
    """Put the results on one kind of data together by their runs; of two of one benchmark, take the newer."""
    runs: dict[str, Run] = {}
    for result in sorted(results, key=lambda result: result["date"]):
        if result["miniature"] == miniature:
            runs.setdefault(result["id"], Run(result["id"], {})).results[Row.of(result)] = result
    return [runs[name] for name in dict.fromkeys(result["id"] for result in results) if name in runs]


def choose_baseline(runs: Sequence[Run], name: str | None) -> Run:
    """Return the run of this name, else the first without reduction, else the first."""
    named = [run for run in runs if run.id == name]
    unreduced = [run for run in runs if run.reduction == "none"]
    return [*named, *unreduced, *runs][0]


def describe(comparison: Comparison) -> str:
    """Return a report on one kind of data in Markdown: scores, and differences to the baseline."""
    runs, baseline = comparison.runs, comparison.baseline
    found = {row for run in runs for row in run.results}
    rows = sorted(found, key=lambda row: (BENCHMARKS.index(row.benchmark), row.part))
    parts = [f"## {comparison.title}", _scores(comparison, rows)]
    if others := [run for run in runs if run is not baseline]:
        parts.append(f"Differences to `{baseline.id}` on the same questions, with 95% intervals:")
        lines = [[row.title, *(_difference(run, baseline, row) for run in others)] for row in rows]
        lines = [line for line in lines if any(line[1:])]
        parts.append(markdown_table(["", *(f"`{run.id}`" for run in others)], lines))
    return "\n\n".join(parts) + "\n"


def draw(comparisons: Sequence[Comparison], path: Path) -> None:
    """Draw relative scores over visual tokens, an axis for each kind of data.

    Args:
        comparisons: One for each kind.
        path: PNG file.

    Raises:
        UserError: If it cannot be written.
    """

    def fill(figure: Figure) -> None:
        axes = figure.subplots(1, len(comparisons), squeeze=False)[0]
        for own, comparison in zip(axes, comparisons, strict=True):
            _draw_runs(own, comparison)

    draw_png(path, fill, figsize=(6 * len(comparisons), 4.5))


def _draw_runs(axes: Axes, comparison: Comparison) -> None:
    for run in comparison.runs:
        tokens, relative = run.visual_tokens, run.relative_to(comparison.baseline)
        if tokens is not None and relative is not None:
            axes.scatter(tokens, relative[0], zorder=3)
            axes.annotate(
                run.id, (tokens, relative[0]), xytext=(6, 4), textcoords="offset points", fontsize=8
            )
    axes.set_title(comparison.title)
    axes.set_xlabel("visual tokens per image")
    axes.set_ylabel(f"mean score relative to {comparison.baseline.id} (%)")
    axes.margins(0.2)
    axes.grid(alpha=0.3)


def _scores(comparison: Comparison, rows: Sequence[Row]) -> str:
    runs, baseline = comparison.runs, comparison.baseline
    relative = [run.relative_to(baseline) for run in runs]
    tokens = [run.visual_tokens for run in runs]
    lines = [
        *([row.title, *(_cell(run.results.get(row)) for run in runs)] for row in rows),
        [f"mean relative to `{baseline.id}` (of n)"]
        + ["" if value is None else f"{value[0]:.1f}% ({value[1]})" for value in relative],
        ["reduction", *(f"`{run.reduction}`" for run in runs)],
        ["visual tokens per image", *("" if value is None else f"{value:.1f}" for value in tokens)],
    ]
    return markdown_table(["", *(f"`{run.id}`" for run in runs)], lines)


def _cell(result: JsonObject | None) -> str:
    """Return a score with its interval and failures, or why there is none."""
    if result is None:
        return ""
    failures = f"; {result['failures']} failed" if result.get("failures") else ""
    score = result["score"]
    if score is None:
        if result["failures"] == result["questions"]:
            return ALL_FAILED
        why = result["judge"] if isinstance(result["judge"], str) else "for submission"
        return f"{why}{failures}"
    return f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]{failures}"


def _difference(run: Run, baseline: Run, row: Row) -> str:
    if run.score(row) is None or baseline.score(row) is None:
        return ""
    first, second = baseline.results[row], run.results[row]
    if why := why_not_paired(second, first):
        return why
    found = paired_difference(_marks(first), _marks(second), row.benchmark.headline)
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def why_not_paired(first: JsonObject, second: JsonObject) -> str | None:
    """Say why the scores of two results cannot be compared; None if they can."""
    judged = [result["judge"] for result in (first, second) if isinstance(result["judge"], dict)]
    has_gaps = any(item["failures"] for item in judged)  # reviews that failed
    same = first["settings"]["questions"] == second["settings"]["questions"]
    if not same or has_gaps or len(first["marks"]) != len(second["marks"]):
        return "other questions"
    if len({(item["judge"], item["prompt_hash"]) for item in judged}) > 1:
        return "another judge"
    return None


def _marks(result: JsonObject) -> list[Mark]:
    return [Mark(*mark) for mark in result["marks"]]


def _has_keys(item: object) -> bool:
    return isinstance(item, dict) and all(key in item for key in KEYS)
