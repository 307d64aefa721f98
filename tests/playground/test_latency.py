import json
from pathlib import Path

import pytest

from llava.assistant import Assistant
from llava.errors import UserError
from llava.messages import Message, Request
from playground.shapes import measure_latency
from playground.shapes.measure_latency import Latency, median_latency, report, time_answer
from playground.shapes.world import Scene


def test_every_setting_is_timed_alone_and_the_numbers_are_written(tmp_path: Path, capsys):
    output = tmp_path / "numbers.json"
    settings = ["TRIM:-1", "Pool:36", "none"]
    arguments = ["--token-reduction", *settings, "--questions", "3", "--output", str(output)]
    assert not measure_latency.main(arguments)
    rows = json.loads(output.read_text())["milliseconds"]
    assert list(rows) == settings
    for row in rows.values():
        assert 0 < row["vision"] < row["first_token"] <= row["answer"]
        assert row["prefill"] < row["first_token"]
    assert capsys.readouterr().out.rstrip().endswith("(1.00) |")


def test_a_question_that_was_asked_before_is_encoded_again(monkeypatch):
    assistant, forgotten = Assistant.load(), []
    monkeypatch.setattr(assistant.encoder.tower, "clear_text_cache", lambda: forgotten.append(True))
    request = Request.ask("What color is the star?", Scene.from_seed(0).render(), token_reduction="TRIM:-1")
    time_answer(assistant, request)
    assert forgotten == [True]


def test_a_request_that_fails_is_an_error():
    request = Request((Message("user", "What color is the star?", ("/nowhere.png",)),))
    with pytest.raises(UserError, match="nowhere.png"):
        time_answer(Assistant.load(), request)


def test_medians_are_taken_of_each_number_and_ratios_to_the_last_row():
    laps = [Latency(1, 2, 3, 6, 10), Latency(3, 1, 2, 7, 20), Latency(2, 3, 1, 5, 30)]
    assert median_latency(laps) == Latency(2, 2, 2, 6, 20)
    table = report({"TRIM:-1": Latency(1, 1, 1, 3, 5), "none": Latency(1, 0, 3, 4, 10)})
    cells = [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")]
    assert cells == ["`TRIM:-1`", "1.0 ms", "1.0 ms", "1.0 ms", "3.0 ms (0.75)", "5.0 ms (0.50)"]
