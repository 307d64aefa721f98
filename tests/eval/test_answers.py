"""Files of answers: joined by ids as text, and never silently those to other questions."""

import json
from pathlib import Path

import pytest

from llava.errors import UserError
from llava.eval.answers import read_answers

SOURCE = Path("questions.jsonl")


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [
        {"question_id": 1, "text": "a"},
        {"question_id": "2", "text": "b"},
        {"question_id": 2, "text": "c"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_ids_are_joined_as_text_and_the_last_record_counts(answers, caplog):
    found = read_answers(answers, ["1", 2], SOURCE)
    assert {key: line["text"] for key, line in found.items()} == {"1": "a", "2": "c"}
    assert not caplog.text


def test_how_many_are_missing_is_said(answers, caplog):
    assert len(read_answers(answers, [1, 2, 3, 4], SOURCE)) == 2
    assert "has no answer to 2 of the 4 questions of questions.jsonl, such as 3" in caplog.text


def test_answers_to_other_questions_are_refused(answers):
    with pytest.raises(UserError, match=r"none of the 2 questions of questions.jsonl; it answers 1, 2 and"):
        read_answers(answers, ["v1_1", "v1_2"], SOURCE)
    answers.write_text("")
    with pytest.raises(UserError, match=r"none of the 1 questions of questions.jsonl$"):
        read_answers(answers, [1], SOURCE)
    assert read_answers(answers, [], SOURCE) == {}
