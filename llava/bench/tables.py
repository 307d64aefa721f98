"""Reports of ``llava bench`` as tables: ``python -m llava.bench.tables REPORT.json`` prints them.

``--into docs/benchmarks.md`` writes them between the marks of that page instead, so that nothing there is
typed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.bench import growth
from llava.bench.growth import Line
from llava.bench.report import ANSWER, BASELINE, DECODE, FIRST_TOKEN, Measured, Report, Spread, read_report
from llava.bench.results import show
from llava.bench.stages import FIRST_TOKEN as STAGES
from llava.markdown import markdown_table
from llava.options import CommandParser
from llava.utils import exit_on_user_error

ABSENT = "-"
NOTHING = "Not measured yet.\n"
TITLES = {"vision": "vision encoder", "text": "text tower"}


def title(what: str) -> str:
    """Return what a stage or a sum of them is called."""
    return TITLES.get(what, what.replace("_", " "))


def number(value: float) -> str:
    """Write a figure with the digits that mean something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{round(value, 6) + 0:.3g}"


def spread(figure: Spread | None) -> str:
    """Write a figure with its range."""
    if figure is None:
        return ABSENT
    return f"{number(figure.median)} ({number(figure.low)} to {number(figure.high)})"


def render(report: Report) -> str:
    """Return all that a report has to say, in Markdown."""
    lines = [f"## {heading(report)}", "", *_conditions(report), ""]
    lines += _growth(report) if report.kind == "growth" else _answers(report)
    return "\n".join(lines).rstrip() + "\n"


def heading(report: Report) -> str:
    """Name a run."""
    return f"{report.model}, {report.dtype}, {report.machine['card']}, {report.date[:10]}"


def _conditions(report: Report) -> Iterator[str]:
    machine, rate = report.machine, report.flops_per_s
    rounds = "1 round" if report.repeats == 1 else f"{report.repeats} rounds"
    yield (
        f"`{report.command}`, commit `{machine['commit'][:12]}`, torch {machine['torch']}, transformers "
        f"{machine['transformers']}, Python {machine['python']}, {report.threads} threads, attention "
        f"`{report.attention}`."
    )
    yield ""
    yield (
        f"Medians of {rounds} after one to warm up, lowest and highest in brackets; in every round all "
        "settings took turns. A large matrix product in the same run and dtype: "
        f"{number(rate.median / 1e9)} GFLOP/s ({number(rate.low / 1e9)} to {number(rate.high / 1e9)}). "
        f"Vision and text tower: {report.tower_parameters / 1e6:,.1f} M parameters; all weights: "
        f"{number(report.weights_mib)} MiB. Answers have {report.new_tokens} tokens; a "
        "step of decoding gives each answer of the batch one."
    )


def _answers(report: Report) -> Iterator[str]:
    for batch in report.batches:
        rows = [row for row in report.rows if row.batch == batch]
        yield from (f"### Batch {batch}", "")
        header = [""] + [f"`{row.reduction}`" for row in rows]
        yield markdown_table(header, _costs(rows))
        yield from ("", "GFLOP counted, and the share of the matrix product's rate that was reached:", "")
        yield markdown_table(header, _work(rows))
        yield ""


def _costs(rows: Sequence[Measured]) -> Iterator[list[str]]:
    """Give the lines of what answers cost, a column for each reduction."""
    yield ["visual tokens", *(f"{row.visual_tokens:.1f}" for row in rows)]
    yield ["prompt tokens", *(f"{row.prompt_tokens:.1f}" for row in rows)]
    for stage in STAGES:
        yield [f"{title(stage)}, ms", *(spread(row.milliseconds.get(stage)) for row in rows)]
    for what in (FIRST_TOKEN, DECODE, ANSWER):
        yield [f"{title(what)}, ms", *(spread(row.milliseconds[what]) for row in rows)]
        yield [f"of that of `{BASELINE}`", *(_ratio(row, rows, what) for row in rows)]
    yield ["tokens/s while decoding", *(number(row.tokens_per_s) for row in rows)]
    yield ["KV cache, MiB", *(number(row.cache_mib) for row in rows)]
    yield ["peak memory, MiB", *map(_peak, rows)]


def _peak(row: Measured) -> str:
    return ABSENT if row.peak_mib is None else number(row.peak_mib)


def _ratio(row: Measured, rows: Sequence[Measured], what: str) -> str:
    baseline = next(one for one in rows if one.reduction == BASELINE)
    return f"{row.milliseconds[what].median / baseline.milliseconds[what].median:.3f}"


def _work(rows: Sequence[Measured]) -> Iterator[list[str]]:
    """Give the lines of what was counted, a column for each reduction."""
    for what in (*STAGES, FIRST_TOKEN, DECODE, ANSWER):
        if any(what in row.flops for row in rows):
            yield [title(what), *(_reached(row, what) for row in rows)]


def _reached(row: Measured, what: str) -> str:
    if what not in row.flops:
        return ABSENT
    return f"{number(row.flops[what] / 1e9)} ({row.rate_shares[what]:.1%})"


def _growth(report: Report) -> Iterator[str]:
    yield from ("### With visual tokens, at batch 1", "")
    rows = growth.by_tokens(report)
    yield markdown_table(
        ["visual tokens", *growth.MEASURES],
        [[f"{row.visual_tokens:.1f}", *_grown(row)] for row in rows],
    )
    yield ""
    for measure in growth.MEASURES:
        yield from _line(growth.points(rows, lambda row: row.visual_tokens, measure), measure, "visual token")
    yield from ("", *_payback(report), "", "### With the batch", "")
    yield markdown_table(
        ["reduction", "batch", *growth.MEASURES],
        [
            [f"`{name}`", str(row.batch), *_grown(row)]
            for name in (BASELINE, growth.REDUCED)
            for row in growth.by_batch(report, name)
        ],
    )
    yield ""
    for name in (BASELINE, growth.REDUCED):
        for measure in growth.MEASURES:
            points = growth.points(growth.by_batch(report, name), lambda row: row.batch, measure)
            yield from _line(points, f"`{name}`, {measure}", "answer of the batch")


def _grown(row: Measured) -> list[str]:
    return [spread(row.milliseconds[FIRST_TOKEN]), number(row.cache_mib), _peak(row)]


def _line(points: Sequence[tuple[float, float]], what: str, one: str) -> Iterator[str]:
    if points:
        line = Line.through(points)
        yield (
            f"- {what}: {formula(line)} for every {one} "
            f"(R² {line.fit:.4f}, measured {points[0][0]:g} to {points[-1][0]:g})"
        )


def formula(line: Line) -> str:
    """Write a line as its height at 0 and what one more adds."""
    return f"{number(line.start)} {'-' if line.slope < 0 else '+'} {number(abs(line.slope))}"


def _payback(report: Report) -> Iterator[str]:
    found = growth.payback(report)
    if found is None:
        yield "The first token takes no longer with more visual tokens: reducing saves no time at batch 1."
        return
    full = f"{found.all_tokens:g}"
    yield (
        f"**Where reducing stops paying.** With `{growth.REDUCED}` the text tower and the selection take "
        f"{number(found.extra_ms)} ms, as much as {number(found.extra_ms / found.token_ms)} visual tokens "
        f"take: fewer than {number(found.saves_below)} of {full} save time in all. Below "
        f"{number(found.halving_saves_above)} visual tokens another halving saves less than "
        f"{growth.WORTH_IT:.0%} of the time to the first token; what is left is preprocessing, towers and "
        "the text of the prompt."
    )


def generated(paths: Sequence[Path], page: Path | None = None) -> str:
    """Return the tables of several reports, the newest first, on a page with the pictures beside them."""
    reports = sorted(((read_report(path), path) for path in paths), key=lambda one: one[0].date, reverse=True)
    return "\n".join(render(report) + _picture(report, path, page) for report, path in reports) or NOTHING


def _picture(report: Report, path: Path, page: Path | None) -> str:
    """Show the picture of a report on a page, where there is one below the page's folder."""
    picture = path.with_suffix(".png").resolve()
    if page is None or not picture.exists() or not picture.is_relative_to(page.resolve().parent):
        return ""
    return f"\n![{heading(report)}]({picture.relative_to(page.resolve().parent).as_posix()})\n"


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Print the tables of reports, or put them into a page."""
    parser = CommandParser(prog="python -m llava.bench.tables", description=main.__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="reports of llava bench")
    parser.add_argument("--into", type=Path, help="page with marks, such as docs/benchmarks.md")
    options = parser.parse_args(arguments)
    show(generated(options.files, options.into), options.into)


if __name__ == "__main__":
    sys.exit(main())
