"""ScienceQA: prompts with and without an image, how letters are read, accuracy by the paper's groups."""

import json

import pytest

from llava.errors import UserError
from llava.eval.benchmark import Response
from llava.eval.benchmarks.scienceqa import choice_of, load, load_questions, mark, metrics, read_letter

LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture
def folder(tmp_path):
    problems = {
        "1": {
            "answer": 1,
            "choices": ["x", "y"],
            "hint": "",
            "image": "image.png",
            "subject": "natural science",
        },
        "2": {
            "answer": 0,
            "choices": ["x", "y", "z"],
            "hint": "Read.",
            "image": None,
            "subject": "social science",
        },
        "3": {"answer": 0, "choices": ["x", "y"], "hint": "", "image": None, "subject": "language science"},
    }
    for number, problem in enumerate(problems.values()):
        problem["grade"] = f"grade{5 + number}"  # 5, 6, 7
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    samples = [
        {"id": "1", "image": "1/image.png", "conversations": [{"from": "human", "value": "Q1\n<image>"}]},
        {"id": "2", "conversations": [{"from": "human", "value": "Q2"}]},
        {"id": "3", "conversations": [{"from": "human", "value": "Q3"}]},
    ]
    (tmp_path / "llava_test_CQM-A.json").write_text(json.dumps(samples))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3"]}))
    return tmp_path


def test_prompts_are_the_published_ones(folder):
    first, second, _ = load(folder, "")
    assert first.text == f"Q1\n{LETTER}"  # which the assistant puts the image before
    assert first.prompt == f"<image>\nQ1\n{LETTER}"
    assert first.clip_text is None  # CLIP reads the instruction too, as published
    assert first.image == folder / "images" / "test" / "1" / "image.png"
    assert (second.text, second.prompt, second.image) == (f"Q2\n{LETTER}", f"Q2\n{LETTER}", None)
    path = folder / "llava_test_CQM-A.json"
    samples = json.loads(path.read_text())
    path.write_text(json.dumps([samples[0], {**samples[1], "image": None}, samples[2]]))
    assert load(folder, "")[1].image is None  # a null is no image
    assert load_questions(path, folder, with_instruction=False)[0].text == "Q1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("B. y", "B"),
        ("The answer is B.", "B"),
        ("First. The answer is C.", "C"),
        ("The answer is A. The answer is B.", "FAILED"),
        ("b", "FAILED"),
        ("B.", "FAILED"),
        ("B)", "FAILED"),
        ("", "FAILED"),
        ("G", "FAILED"),
        ("AB", "FAILED"),
    ],
)
def test_letters_are_read_as_the_published_scorer_does(text, expected):
    assert read_letter(text) == expected


def test_a_letter_beyond_the_choices_is_none_of_them():
    assert choice_of("B", 2) == 1
    assert choice_of("C", 2) == -1
    assert choice_of("FAILED", 2) == -1


def test_accuracy_is_counted_for_all_and_for_the_papers_groups(folder):
    questions = load(folder, "")
    texts = ["B", "C", "The answer is A."]
    marks = [mark(Response(q, text)) for q, text in zip(questions, texts, strict=True)]
    # Right are the first (with an image, natural science, grade 5) and the third (no context, grade 7).
    assert metrics(marks) == pytest.approx(
        {
            **{"accuracy": 200 / 3, "IMG": 100, "TXT": 0, "NO": 100},
            **{"NAT": 100, "SOC": 0, "LAN": 100, "G1-6": 50, "G7-12": 100},
        }
    )


def test_what_cannot_be_read_or_failed_is_wrong(folder):
    question = load(folder, "")[0]
    assert mark(Response(question, "perhaps")).points == 0
    assert mark(Response(question, "B", error="broken image")).points == 0


def test_a_question_of_the_split_that_is_not_asked_is_named(folder):
    # The published scorer counts it as wrong.
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3", 4, 5]}))
    with pytest.raises(UserError, match="lacks 2 of the 5 problems of the split 'test'.*, such as 4"):
        load(folder, "")


def test_a_problem_that_is_missing_is_named(folder):
    (folder / "problems.json").write_text("{}")
    with pytest.raises(UserError, match="problem 1 of problems.json is None"):
        load(folder, "")
