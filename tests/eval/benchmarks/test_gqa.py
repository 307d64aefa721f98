"""GQA: joined with the official answers, compared as a whole, exported for the official scorer."""

import json

import pytest

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Response, accuracy
from llava.eval.benchmarks.gqa import export, load, mark


def official(answer, structural, is_balanced=True):
    return {"answer": answer, "isBalanced": is_balanced, "types": {"structural": structural}}


@pytest.fixture
def folder(tmp_path):
    lines = [
        {"question_id": str(number), "image": f"n{number // 2}.jpg", "text": f"Q{number}?\nAnswer."}
        for number in range(5)
    ]
    (tmp_path / "llava_gqa_testdev_balanced.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    answers = {
        "0": official("red", "query"),
        "1": official("yes", "verify"),
        "2": official("left", "choose"),
        "3": official("man", "query"),
        "4": official("dog", "query", is_balanced=False),
    }
    (tmp_path / "data" / "questions1.2").mkdir(parents=True)
    place = tmp_path / "data" / "questions1.2" / "testdev_balanced_questions.json"
    place.write_text(json.dumps(answers))
    return tmp_path


def test_questions_are_asked_as_they_stand_in_the_file(folder):
    questions = load(folder, "testdev_balanced")
    assert questions[1].text == "Q1?\nAnswer."
    assert questions[1].clip_text is None
    assert questions[1].image == folder / "data" / "images" / "n0.jpg"
    assert questions[0].unit == questions[1].unit != questions[2].unit


def test_balanced_questions_are_scored_by_kind(folder):
    questions = load(folder, "testdev_balanced")
    texts = ["Red.", "No", "left", "the man", "dog"]
    responses = [Response(question, text) for question, text in zip(questions, texts, strict=True)]
    marks = [mark(response) for response in responses if response.question.target is not None]
    # "Red." is right without case and period; "No" is wrong; "left" is right; "the man" is not "man"; the
    # fifth question is not balanced: 2 of 4, of the open ones 1 of 2, of the binary ones 1 of 2.
    assert accuracy(marks) == {"accuracy": 50, "open": 50, "binary": 50}


def test_a_question_that_failed_is_wrong(folder):
    question = load(folder, "testdev_balanced")[0]
    assert mark(Response(question, "red", error="no image")).points == 0


def test_the_export_is_what_the_official_scorer_reads(folder):
    questions = load(folder, "testdev_balanced")
    path = export([Response(questions[0], "Red..")], folder, "testdev_balanced", "run")
    assert path == folder / "data" / "testdev_balanced_predictions.json"
    assert json.loads(path.read_text()) == [{"questionId": "0", "prediction": "red"}]


def test_a_question_that_the_official_file_lacks_is_named(folder):
    with (folder / "llava_gqa_testdev_balanced.jsonl").open("a") as file:
        file.write('{"question_id": "99", "image": "a.jpg", "text": "?"}\n')
    with pytest.raises(UserError, match="question 99 of .*testdev_balanced_questions.json is None"):
        load(folder, "testdev_balanced")


def test_without_the_official_file_its_places_are_said(folder):
    (folder / "data" / "questions1.2" / "testdev_balanced_questions.json").unlink()
    with pytest.raises(MissingFileError, match="no data/testdev_balanced_questions.json or data/q"):
        load(folder, "testdev_balanced")
