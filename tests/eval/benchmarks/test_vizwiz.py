"""VizWiz: LLaVA's file and the official one, accuracy where answers are public, the submission always."""

import json

import pytest

from llava.eval.benchmark import Response
from llava.eval.benchmarks.vizwiz import export, load
from llava.eval.benchmarks.vqa import mark

PEOPLE = [{"answer": "unanswerable"}] * 4 + [{"answer": "a can"}] * 2 + [{"answer": f"{n}"} for n in range(4)]


@pytest.fixture
def folder(tmp_path):
    lines = [{"question_id": number, "image": f"{number}.jpg", "text": f"Q{number}?"} for number in range(2)]
    (tmp_path / "llava_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_without_public_answers_there_is_only_the_submission(folder):
    (folder / "test.json").write_text(json.dumps([{"image": "0.jpg", "question": "Q0?"}]))
    questions = load(folder, "test")
    assert [question.target for question in questions] == [None, None]
    assert questions[1].image == folder / "test" / "1.jpg"
    responses = [Response(questions[0], "A can."), Response(questions[1], "Unanswerable")]
    path = export(responses, folder, "test", "run")
    assert path == folder / "answers_upload" / "run.json"
    assert json.loads(path.read_text()) == [
        {"image": "0.jpg", "answer": "can"},
        {"image": "1.jpg", "answer": "unanswerable"},
    ]


def test_with_public_answers_ten_people_decide(folder):
    official = [{"image": "0.jpg", "question": "Q0?", "answers": PEOPLE, "answer_type": "unanswerable"}]
    (folder / "test.json").write_text(json.dumps(official))
    question = load(folder, "test")[0]
    assert question.group == "unanswerable"
    assert mark(Response(question, "Unanswerable")).points == 1  # four of ten
    assert mark(Response(question, "can")).points == pytest.approx(0.6)  # 2 x 1/3 + 8 x 2/3 = 6 of 10
    assert mark(Response(question, "I see nothing")).points == 0
    assert mark(Response(question, "can", error="no image")).points == 0


def test_the_official_file_of_the_validation_serves(tmp_path):
    (tmp_path / "val.json").write_text(
        json.dumps([{"image": "a.jpg", "question": "What?", "answers": PEOPLE}])
    )
    (question,) = load(tmp_path, "val")
    assert question.text == (
        "What?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert question.image == tmp_path / "val" / "a.jpg"
