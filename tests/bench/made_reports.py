"""Reports of ``llava bench`` with figures that can be checked by hand."""

from dataclasses import replace
from typing import Any

from llava.bench.report import ANSWER, DECODE, FIRST_TOKEN, Measured, Report, Spread

MACHINE = {
    **{"card": "CPU, 2 cores", "cores": 2, "python": "3.12.1", "torch": "2.9.0", "transformers": "5.20.0"},
    "commit": "0123456789abcdef",
}


def row(reduction: str, batch: int, tokens: float, first: float, **stages: float) -> Measured:
    """Return a row with so many visual tokens and so many milliseconds to the first token."""
    figures = {**stages, FIRST_TOKEN: first, DECODE: 10.0 * batch, ANSWER: first + 50.0 * batch}
    return Measured(
        reduction=reduction,
        batch=batch,
        visual_tokens=tokens,
        prompt_tokens=tokens + 40,
        milliseconds={what: Spread(ms, ms - 1, ms + 2) for what, ms in figures.items()},
        flops={"prefill": tokens * 1e9, FIRST_TOKEN: tokens * 1e9, DECODE: 1e9, ANSWER: tokens * 1e9 + 5e9},
        rate_shares={"prefill": 0.9, FIRST_TOKEN: 0.8, DECODE: 0.1, ANSWER: 0.5},
        cache_mib=tokens * batch / 2,
        peak_mib=1000 + tokens * batch,
    )


def report(*rows: Measured, **changes: Any) -> Report:
    """Return a report with these rows."""
    made = Report(
        kind="answers",
        date="2026-01-02T03:04:05+00:00",
        command="llava bench --random tiny",
        model="tiny, random weights",
        dtype="float32",
        attention="sdpa",
        threads=2,
        machine=dict(MACHINE),
        new_tokens=6,
        repeats=3,
        flops_per_s=Spread(100e9, 98e9, 103e9),
        tower_parameters=415_300_000,
        weights_mib=4800.0,
        rows=rows,
    )
    return replace(made, **changes)


def growing() -> Report:
    """Return a report in which every visual token adds 2 ms to 100 ms, and TRIM costs 40 ms more."""
    grids = [row(f"Pool:{count}", 1, count, 100 + 2 * count) for count in (1, 4, 16)]
    batches = [
        made
        for batch in (1, 2, 4)
        for made in (
            row("none", batch, 64, 228 * batch),
            row("TRIM:0.21", batch, 14, 168 * batch, text=30.0 * batch, selection=10.0 * batch),
        )
    ]
    return report(*grids, *batches, kind="growth")
