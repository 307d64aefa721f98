"""Two reports of ``llava bench`` beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llava.bench.report import ANSWER, DECODE, FIRST_TOKEN, Measured, Report
from llava.bench.tables import ABSENT, number, title
from llava.errors import UserError
from llava.markdown import markdown_table

MACHINE = ("card", "cores", "python", "torch", "transformers", "commit")
TIMES = ("vision", "text", "prefill", FIRST_TOKEN, DECODE, ANSWER)
COUNTS: dict[str, Callable[[Measured], float | None]] = {
    "visual tokens": lambda row: row.visual_tokens,
    "KV cache, MiB": lambda row: row.cache_mib,
    "peak memory, MiB": lambda row: row.peak_mib,
    "GFLOP to the first token": lambda row: row.flops[FIRST_TOKEN] / 1e9,
}


def compare(first: Report, second: Report) -> str:
    """Return what two runs have in common side by side, with the ratios of the second to the first.

    Raises:
        UserError: If they have no reduction at a batch size in common.
    """
    pairs = [(row, other) for row in first.rows if (other := second.row(row.reduction, row.batch))]
    if not pairs:
        raise UserError("the two reports have no reduction at the same batch size in common")
    lines = [*_differences(first, second), ""]
    lines.append("First -> second (ratio); ≈ marks times whose ranges overlap.")
    header = ["reduction", "batch", *(f"{title(what)}, ms" for what in TIMES), *COUNTS]
    lines += ["", markdown_table(header, [_pair(*pair) for pair in pairs])]
    for name, rows, others in (("first", first, second), ("second", second, first)):
        alone = [row for row in rows.rows if others.row(row.reduction, row.batch) is None]
        lines += [f"- only in the {name}: `{row.reduction}`, batch {row.batch}" for row in alone]
    return "\n".join(lines) + "\n"


def _differences(first: Report, second: Report) -> Iterator[str]:
    """Say in what else two runs differ, which their figures may come from."""
    own = {name: getattr(first, name) for name in ("model", "dtype", "attention", "threads", "new_tokens")}
    for name, value in own.items():
        if (other := getattr(second, name)) != value:
            yield f"- {title(name)}: {value} -> {other}"
    for name in MACHINE:
        if (value := first.machine.get(name)) != (other := second.machine.get(name)):
            yield f"- {name}: {value} -> {other}"
    rates = [report.flops_per_s.median / 1e9 for report in (first, second)]
    yield f"- large matrix product: {_change(*rates)} GFLOP/s"


def _change(before: float | None, after: float | None) -> str:
    if before is None or after is None:
        return ABSENT
    ratio = f" ({after / before:.3f})" if before else ""
    return f"{number(before)} -> {number(after)}{ratio}"


def _pair(row: Measured, other: Measured) -> list[str]:
    cells = [f"`{row.reduction}`", str(row.batch)]
    for what in TIMES:
        own, others = row.milliseconds.get(what), other.milliseconds.get(what)
        if own is None or others is None:
            cells.append(ABSENT)
        else:
            cells.append(_change(own.median, others.median) + " ≈" * own.overlaps(others))
    return cells + [_change(count(row), count(other)) for count in COUNTS.values()]
