"""VQAv2: LLaVA's files and the official ones, accuracy where answers are public, the submission always."""

import json

import pytest

from llava.eval.benchmark import Response, accuracy
from llava.eval.benchmarks.vqa import mark
from llava.eval.benchmarks.vqav2 import export, load


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def line(number):
    return {"question_id": number, "image": f"{number}.jpg", "text": f"Q{number}?\nAnswer."}


def people(*answers):
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "llava_vqav2_mscoco_test-dev2015.jsonl", [line(1), line(2)])
    write_lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [line(0), line(1), line(2)])
    return tmp_path


def test_without_public_answers_there_is_only_the_submission(folder):
    questions = load(folder, "test-dev2015")
    assert [question.target for question in questions] == [None, None]
    assert questions[0].image == folder / "test2015" / "1.jpg"
    assert questions[0].text == "Q1?\nAnswer."
    path = export([Response(questions[1], "Two dogs.")], folder, "test-dev2015", "run")
    assert path == folder / "answers_upload" / "llava_vqav2_mscoco_test-dev2015" / "run.json"
    assert json.loads(path.read_text()) == [
        {"question_id": 0, "answer": ""},
        {"question_id": 1, "answer": ""},
        {"question_id": 2, "answer": "2 dogs"},
    ]


def test_with_public_answers_ten_people_decide(folder):
    annotations = [
        {"question_id": 1, "answer_type": "yes/no", "answers": people(*["yes"] * 7, *["no"] * 3)},
        {"question_id": 2, "answer_type": "other", "answers": people(*["cat"] * 10)},
    ]
    path = folder / "v2_mscoco_test-dev2015_annotations.json"
    path.write_text(json.dumps({"annotations": annotations}))
    questions = load(folder, "test-dev2015")
    # Three of ten said no: 3 x 2/3 + 7 x 1 = 9 of 10. "???" is none of the answers.
    marks = [mark(Response(questions[0], "No")), mark(Response(questions[1], "???"))]
    assert [item.points for item in marks] == pytest.approx([0.9, 0])
    assert accuracy(marks) == pytest.approx({"accuracy": 45, "yes/no": 90, "other": 0})
    assert mark(Response(questions[1], "cat", error="no image")).points == 0


def test_the_official_files_of_the_validation_serve(tmp_path):
    document = {"questions": [{"question_id": 5, "image_id": 42, "question": "What is it?"}]}
    (tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(document))
    answers = {"annotations": [{"question_id": 5, "answer_type": "other", "answers": people(*["cat"] * 10)}]}
    (tmp_path / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(answers))
    (question,) = load(tmp_path, "val2014")
    assert question.text == "What is it?\nAnswer the question using a single word or phrase."
    assert question.image == tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"
    assert mark(Response(question, "A cat")).points == 1
    path = export([Response(question, "A cat")], tmp_path, "val2014", "run")
    assert json.loads(path.read_text()) == [{"question_id": 5, "answer": "cat"}]
