"""Reports survive being written, and what is none is refused."""

import json
from pathlib import Path

import pytest

from llava.bench.report import DECODE, SCHEMA, Spread, read_report
from llava.errors import UserError
from tests.bench.made_reports import report, row


def test_a_report_is_read_as_it_was_written(tmp_path: Path):
    made = report(row("none", 1, 576, 100.0, vision=30.0), row("TRIM:64", 4, 65, 40.0))
    path = tmp_path / "report.json"
    path.write_text(made.as_json())
    assert read_report(path) == made


def test_figures_of_several_rounds_are_summed_up():
    spread = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert spread == Spread(2.5, 1.0, 10.0)
    assert spread.overlaps(Spread(12, 10, 14)) and not spread.overlaps(Spread(12, 10.5, 14))


def test_tokens_per_second_are_those_of_all_answers():
    made = row("none", 4, 576, 100.0)
    assert made.milliseconds[DECODE].median == 40
    assert made.tokens_per_s == 100


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("no JSON", "cannot be read as results"),
        ('{"schema": 1}', f"has results of schema 1; accepted: {SCHEMA}"),
        (json.dumps({"schema": SCHEMA, "rows": []}), "is no whole report of llava bench"),
        (json.dumps({"schema": SCHEMA, "rows": [{"batch": 1}]}), "is no whole report of llava bench"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, sentence: str):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_report(path)
    with pytest.raises(UserError, match="cannot be read as results"):
        read_report(tmp_path / "missing.json")
