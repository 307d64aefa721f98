"""SEED-Bench: letters compared as they are, accuracy by kind of data and type of question."""

import json

import pytest

from llava.errors import UserError
from llava.eval.benchmark import Response
from llava.eval.benchmarks.seed import export, load, mark, metrics


@pytest.fixture
def folder(tmp_path):
    official = [
        {"question_id": "101", "question_type_id": 1, "data_type": "image", "answer": "A"},
        {"question_id": "102", "question_type_id": 1, "data_type": "image", "answer": "B"},
        {"question_id": "103", "question_type_id": 5, "data_type": "image", "answer": "C"},
        {"question_id": "v_9", "question_type_id": 10, "data_type": "video", "answer": "D"},
    ]
    types = {"Scene Understanding": 1, "Instances Counting": 5, "Action Recognition": 10}
    document = {"questions": official, "question_type": types}
    (tmp_path / "SEED-Bench.json").write_text(json.dumps(document))
    lines = [
        {"question_id": key, "image": f"SEED-Bench-image/{key}", "text": f"Q{key}?\nA. x\nB. y\nAnswer."}
        for key in (101, 102, 103)
    ]
    lines.append({"question_id": "v_9", "image": "SEED-Bench-video-image/v_9.png", "text": "Q?"})
    (tmp_path / "llava-seed-bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_questions_are_asked_as_they_stand_in_the_file(folder):
    questions = load(folder, "")
    assert questions[0].text == "Q101?\nA. x\nB. y\nAnswer."
    assert questions[0].clip_text is None
    assert questions[0].image == folder / "SEED-Bench-image" / "101"
    assert questions[3].image == folder / "SEED-Bench-video-image" / "v_9.png"
    assert questions[3].target == "D"


def test_only_the_letter_alone_is_right(folder):
    questions = load(folder, "")
    texts = ["A", "B.", "C", "D"]
    marks = [mark(Response(q, text)) for q, text in zip(questions, texts, strict=True)]
    # "B." is not "B": of three questions about images two are right, of the four in all three.
    assert metrics(marks) == pytest.approx(
        {
            **{"image": 200 / 3, "total": 75, "video": 100},
            **{"Scene Understanding": 50, "Instances Counting": 100, "Action Recognition": 100},
        }
    )
    assert next(iter(metrics(marks))) == "image"


def test_types_without_a_right_answer_and_data_without_videos_have_scores(folder):
    questions = load(folder, "")[:3]
    marks = [mark(Response(questions[0], "I do not know")), mark(Response(questions[2], "C", error="broken"))]
    found = metrics(marks)
    assert (found["image"], found["video"], found["Instances Counting"]) == (0, 0, 0)


def test_the_export_is_what_the_server_takes(folder):
    questions = load(folder, "")
    path = export([Response(questions[0], "A"), Response(questions[3], "D")], folder, "", "run")
    assert path == folder / "answers_upload" / "run.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"question_id": 101, "prediction": "A"},
        {"question_id": "v_9", "prediction": "D"},
    ]


def test_a_question_that_the_official_file_lacks_is_named(folder):
    with (folder / "llava-seed-bench.jsonl").open("a") as file:
        file.write('{"question_id": 7, "image": "a", "text": "?"}\n')
    with pytest.raises(UserError, match="question 7 of SEED-Bench.json is None"):
        load(folder, "")
