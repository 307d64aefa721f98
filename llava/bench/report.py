"""What a run of ``llava bench`` found: values, and the JSON that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from llava.bench.results import read_json
from llava.errors import UserError

SCHEMA = "llava-bench-1"
BASELINE = "none"
FIRST_TOKEN, DECODE, ANSWER = "first_token", "decode_per_token", "whole_answer"


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure that was measured several times.

    Attributes:
        median: Of all rounds.
        low: The lowest.
        high: The highest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Sum up the figures of several rounds."""
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    def overlaps(self, other: Spread) -> bool:
        """Tell whether the ranges of two figures have something in common."""
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True, slots=True)
class Measured:
    """One reduction at one batch size.

    Attributes:
        reduction: As ``mm_vision_token_reduce_func`` has it.
        batch: Questions that are answered together, each about a picture of its own.
        visual_tokens: Of a picture, on average.
        prompt_tokens: Positions of a prompt, those included, on average.
        milliseconds: Of the whole batch: each stage before the first token, `FIRST_TOKEN`, `DECODE` (a step,
            which gives every answer one token) and `ANSWER`.
        flops: Of the same, where the device multiplies matrices; counted, not measured.
        rate_shares: Of the same, these over the milliseconds, as a share of the rate of a large product.
        cache_mib: Keys and values after the prefill.
        peak_mib: Most memory meanwhile, weights included; None where it is not counted.
    """

    reduction: str
    batch: int
    visual_tokens: float
    prompt_tokens: float
    milliseconds: dict[str, Spread]
    flops: dict[str, float]
    rate_shares: dict[str, float]
    cache_mib: float
    peak_mib: float | None

    @property
    def tokens_per_s(self) -> float:
        """Tokens that all answers together get per second of decoding."""
        return 1000 * self.batch / self.milliseconds[DECODE].median


@dataclass(frozen=True, slots=True)
class Report:
    """One run.

    Attributes:
        kind: What was varied: reductions, or the number of visual tokens and of answers.
        date: When, in UTC.
        command: That does the same again.
        model: Its name, or its size.
        dtype: Of the weights.
        attention: Name of transformers' attention.
        threads: That the CPU computes with.
        machine: See `llava.bench.machine.describe_machine`.
        new_tokens: Of an answer.
        repeats: Rounds that count, after one to warm up.
        flops_per_s: Of a large matrix product in this dtype, measured between the rounds.
        tower_parameters: That are held of CLIP.
        weights_mib: Of everything.
        rows: What was measured.
    """

    kind: Literal["answers", "growth"]
    date: str
    command: str
    model: str
    dtype: str
    attention: str
    threads: int
    machine: dict[str, Any]
    new_tokens: int
    repeats: int
    flops_per_s: Spread
    tower_parameters: int
    weights_mib: float
    rows: tuple[Measured, ...]

    def row(self, reduction: str, batch: int) -> Measured | None:
        """Return what was measured of a reduction at a batch size."""
        return next((row for row in self.rows if (row.reduction, row.batch) == (reduction, batch)), None)

    @property
    def batches(self) -> list[int]:
        """The batch sizes, in their order."""
        return list(dict.fromkeys(row.batch for row in self.rows))

    def as_json(self) -> str:
        """Write it down."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"


def read_report(path: Path) -> Report:
    """Read what `Report.as_json` wrote.

    Raises:
        UserError: If the file holds something else.
    """
    document = read_json(path, SCHEMA)
    try:
        rows = tuple(_measured(row) for row in document.pop("rows"))
        return Report(**{**document, "flops_per_s": Spread(**document["flops_per_s"]), "rows": rows})
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no whole report of llava bench: {error}") from error


def _measured(row: dict[str, Any]) -> Measured:
    spreads = {what: Spread(**figure) for what, figure in row["milliseconds"].items()}
    return Measured(**{**row, "milliseconds": spreads})
