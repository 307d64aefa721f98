"""Two reports beside each other."""

import pytest

from llava.bench.compare import compare
from llava.errors import UserError
from tests.bench.made_reports import MACHINE, report, row


def test_what_both_measured_is_shown_with_ratios():
    first = report(
        row("none", 1, 576, 100.0), row("TRIM:64", 1, 65, 50.0, text=8.0), row("none", 4, 576, 400.0)
    )
    second = report(
        row("none", 1, 576, 101.0),
        row("TRIM:64", 1, 65, 25.0, text=4.0),
        row("Pool:64", 1, 64, 20.0),
        dtype="bfloat16",
        machine={**MACHINE, "commit": "fedcba"},
    )
    text = compare(first, second)
    assert "- dtype: float32 -> bfloat16" in text
    assert "- commit: 0123456789abcdef -> fedcba" in text
    assert "torch" not in text
    assert "large matrix product: 100 -> 100 (1.000) GFLOP/s" in text
    lines = text.splitlines()
    unreduced, reduced = (
        next(line for line in lines if line.startswith(f"| `{name}`")) for name in ("none", "TRIM:64")
    )
    assert "100 -> 101 (1.010) ≈" in unreduced
    assert "50 -> 25 (0.500) |" in " ".join(reduced.split())
    assert "8 -> 4 (0.500)" in reduced
    assert lines[-2:] == ["- only in the first: `none`, batch 4", "- only in the second: `Pool:64`, batch 1"]


def test_reports_of_different_settings_are_refused():
    with pytest.raises(UserError, match="no reduction at the same batch size in common"):
        compare(report(row("none", 1, 576, 100.0)), report(row("none", 2, 576, 100.0)))
