"""MME: questions joined with the truth in both layouts, points, files for the official scorer."""

import json
from dataclasses import replace

import pytest

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Mark, Response
from llava.eval.benchmarks.mme import MME, RELEASE, export, load, mark, metrics, says

INSTRUCTION = "\nAnswer the question using a single word or phrase."


@pytest.fixture
def folder(tmp_path):
    release = tmp_path / RELEASE
    (release / "count").mkdir(parents=True)
    (release / "count" / "1.txt").write_text(
        "Are there two dogs? Please answer yes or no.\tYes\n"
        "Are there three dogs?  Please answer yes or no.\tNo\n"
    )
    (release / "artwork" / "images").mkdir(parents=True)
    (release / "artwork" / "questions_answers_YN").mkdir()
    (release / "artwork" / "images" / "2.jpg").write_bytes(b"")
    (release / "artwork" / "questions_answers_YN" / "2.txt").write_text(
        "Is this a painting? Please answer yes or no.\tYes\n"
    )
    lines = [
        ("count/1.png", "Are there two dogs?"),
        ("count/1.png", "Are there three dogs?"),
        ("artwork/2.jpg", "Is this a painting?"),
    ]
    questions = [{"question_id": key, "image": key, "text": text + INSTRUCTION} for key, text in lines]
    (tmp_path / "llava_mme.jsonl").write_text("".join(json.dumps(line) + "\n" for line in questions))
    return tmp_path


def test_questions_are_joined_with_the_truth_in_both_layouts(folder):
    questions = load(folder, "")
    assert questions[0].text == f"Are there two dogs?{INSTRUCTION}"
    assert questions[0].clip_text is None
    assert [question.target.answer for question in questions] == ["Yes", "No", "Yes"]
    assert questions[1].target.question == "Are there three dogs?  Please answer yes or no."  # as MME has it
    assert questions[0].image == folder / RELEASE / "count" / "1.png"
    assert questions[2].image == folder / RELEASE / "artwork" / "images" / "2.jpg"
    assert questions[0].unit == questions[1].unit == "count/1.png"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        ("Yes, it is", "yes"),
        ("No.", "no"),
        ("a no", "no"),  # within the first four characters
        ("the answer is yes", "other"),
        ("nothing", "no"),  # so the official scorer reads it
        ("", "other"),
    ],
)
def test_answers_are_read_as_the_official_scorer_does(text, expected):
    assert says(text) == expected


def test_a_category_has_points_for_questions_and_for_images():
    marks = [
        Mark("count/1", 1.0, "count"),
        Mark("count/1", 1.0, "count"),
        Mark("count/2", 1.0, "count"),
        Mark("count/2", 0.0, "count"),
        Mark("code_reasoning/1", 1.0, "code_reasoning"),
        Mark("code_reasoning/1", 0.0, "code_reasoning"),
    ]
    # count: 3 of 4 questions and 1 of 2 images, 75 + 50; code_reasoning: 1 of 2 and 0 of 1, 50 + 0.
    assert metrics(marks) == {"perception": 125, "cognition": 50, "count": 125, "code_reasoning": 50}
    assert MME.best == 2000


def test_an_answer_that_is_neither_and_one_that_failed_are_wrong(folder):
    question = load(folder, "")[1]
    assert mark(Response(question, "No")).points == 1
    assert mark(Response(question, "I cannot tell")).points == 0
    assert mark(Response(question, "No", error="broken image")).points == 0


def test_the_export_is_what_the_official_scorer_reads(folder):
    questions = load(folder, "")
    responses = [
        Response(question, text) for question, text in zip(questions, ["Yes", "N\no", "No"], strict=True)
    ]
    path = export(responses, folder, "", "run")
    assert path == folder / "eval_tool" / "answers" / "run"
    assert (path / "count.txt").read_text() == (
        "1.png\tAre there two dogs? Please answer yes or no.\tYes\tYes\n"
        "1.png\tAre there three dogs?  Please answer yes or no.\tNo\tN o\n"
    )
    assert (path / "artwork.txt").read_text().endswith("\tYes\tNo\n")


def test_the_export_has_the_questions_about_an_image_side_by_side(folder):
    """The official scorer takes each two lines for those of one image."""
    first, second, _ = load(folder, "")
    elsewhere = replace(first, id="count/9.png", unit="count/9.png")
    path = export([Response(question, "Yes") for question in (first, elsewhere, second)], folder, "", "run")
    files = [line.split("\t")[0] for line in (path / "count.txt").read_text().splitlines()]
    assert files == ["9.png", "1.png", "1.png"]


def test_a_question_that_mme_does_not_have_is_said(folder):
    (folder / "llava_mme.jsonl").write_text('{"question_id": "count/1.png", "image": "a", "text": "Why?"}\n')
    with pytest.raises(UserError, match=r"MME has no question 'Why\?' about count/1.png; it has Are"):
        load(folder, "")


def test_a_missing_truth_names_both_places(folder):
    (folder / "llava_mme.jsonl").write_text('{"question_id": "count/3.png", "image": "a", "text": "Why?"}\n')
    with pytest.raises(MissingFileError, match=r"count/3.txt nor .*questions_answers_YN/3.txt"):
        load(folder, "")


def test_a_truth_that_is_not_utf_8_is_named(folder):
    (folder / RELEASE / "count" / "1.txt").write_bytes(b"Am\xe9lie?\tYes\n")
    with pytest.raises(UserError, match=r"1.txt is not UTF-8 text"):
        load(folder, "")


def test_a_malformed_truth_is_named_by_its_line(folder):
    (folder / RELEASE / "count" / "1.txt").write_text("Are there two dogs?\tMaybe\n")
    with pytest.raises(UserError, match=r"1.txt, line 1 is .*; expected a question, a tab"):
        load(folder, "")
