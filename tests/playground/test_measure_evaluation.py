"""The evaluation's runner against a loop: what each has to encode."""

import json
from collections import Counter
from pathlib import Path

import pytest

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.errors import UserError
from playground.shapes import measure_evaluation
from playground.shapes.measure_evaluation import measure, write_questions


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(token_reduction="TRIM:16", device="cpu")


def test_the_loop_encodes_an_image_for_every_question_and_the_runner_once_a_turn(
    assistant, tmp_path: Path, monkeypatch
):
    encode = assistant.encoder.encode
    encoded: Counter[str] = Counter()

    def counting(images, *rest):
        encoded["images"] += len(images)
        return encode(images, *rest)

    monkeypatch.setattr(assistant.encoder, "encode", counting)
    questions = write_questions(tmp_path, images=1)
    assert len(questions) == 6
    found = measure(assistant, questions, Generation(max_new_tokens=2), turns=1)
    turns = 2  # one of them to warm up
    assert encoded["images"] == turns * (6 + 1)
    assert found.questions == 6 and found.ratio[1] <= found.ratio[0] <= found.ratio[2]


def test_a_question_that_cannot_be_answered_is_an_error(assistant, tmp_path: Path):
    questions = write_questions(tmp_path, images=1)
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="0.png"):
        measure(assistant, questions, Generation(max_new_tokens=2), turns=1)


def test_the_numbers_are_written_with_their_settings(tmp_path: Path, capsys):
    output = tmp_path / "numbers.json"
    arguments = ["--images", "1", "--new-tokens", "2", "--turns", "1", "--output", str(output)]
    assert not measure_evaluation.main(arguments)
    numbers = json.loads(output.read_text())
    assert (numbers["questions"], numbers["settings"]["images"]) == (6, 1)
    assert "the answers are the same" in capsys.readouterr().out
