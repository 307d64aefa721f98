"""LLaVA-Bench (in the wild): what is asked, what the judge sees, and ratings relative to the reference's."""

import json
from pathlib import Path

import pytest

from llava.errors import UserError
from llava.eval.benchmark import Mark, Response
from llava.eval.benchmarks.llava_bench import (
    LLAVA_BENCH,
    RULES,
    load,
    messages,
    metrics,
    ratings,
    read_rules,
    record,
)
from llava.eval.judge import Judge
from llava.eval.reviews import review
from tests.eval.judge_server import serving

QUESTIONS = [
    {"question_id": 0, "image": "001.jpg", "text": "What is it?", "category": "conv"},
    {"question_id": 1, "image": "001.jpg", "text": "Describe it.", "category": "detail"},
    {"question_id": 2, "image": "002.jpg", "text": "Why is it so?", "category": "complex"},
    {"question_id": 3, "image": "002.jpg", "text": "Who is it?", "category": "conv"},
]


def write_lines(path: Path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "questions.jsonl", QUESTIONS)
    contexts = [{"id": i, "image": f"00{i}.jpg", "caption": f"Scene {i}."} for i in (1, 2)]
    write_lines(tmp_path / "context.jsonl", contexts)
    references = [
        {"question_id": q["question_id"], "text": f"Reference {q['question_id']}.", "answer_id": f"r{i}"}
        for i, q in enumerate(QUESTIONS)
    ]
    # Joined by id: LLaVA's command takes them by their position.
    write_lines(tmp_path / "answers_gpt4.jsonl", references[::-1])
    return tmp_path


def test_questions_are_asked_as_they_stand_in_the_file(folder):
    questions = load(folder, "")
    assert [question.text for question in questions] == [line["text"] for line in QUESTIONS]
    assert {(question.prompt, question.clip_text) for question in questions} == {(None, None)}
    assert questions[2].image == folder / "images" / "002.jpg"
    assert [question.group for question in questions] == ["conv", "detail", "complex", "conv"]
    assert [question.unit for question in questions] == ["001.jpg", "001.jpg", "002.jpg", "002.jpg"]
    assert LLAVA_BENCH.generation.max_new_tokens == 1024


def test_the_judge_sees_context_question_reference_answer_and_rule(folder):
    question = load(folder, "")[3]
    system, user = messages(Response(question, "It is I."))
    assert system["role"] == "system"
    assert user == {
        "role": "user",
        "content": "[Context]\nScene 2.\n\n[Question]\nWho is it?\n\n"
        "[Assistant 1]\nReference 3.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nIt is I.\n\n[End of Assistant 2]\n\n"
        f"[System]\n{read_rules(RULES)['llava_bench_conv'].prompt}",
    }


def test_the_built_in_rules_are_of_all_categories():
    assert list(read_rules(RULES)) == ["llava_bench_conv", "llava_bench_detail", "llava_bench_complex"]
    assert all("one line" in rule.prompt and "1 to 10" in rule.prompt for rule in read_rules(RULES).values())


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("8 7.5\nThe first answer is better.", (8.0, 7.5)),
        ("9, 6", (9.0, 6.0)),
        ("10,0\n", (10.0, 0.0)),
        ("8 7 6\nThree ratings.", None),
        ("8", None),
        ("Assistant 1: 8\nAssistant 2: 7", None),
        ("\n8 7", None),
        ("80 70", None),  # not on the scale
        ("-1 -1", None),
        ("nan nan", None),
        ("", None),
    ],
)
def test_the_first_line_is_read_as_two_ratings(reply, expected):
    assert ratings(reply) == expected


def test_scores_are_relative_to_the_reference(folder):
    replies = ["8 6\nGood.", "9 9", "well", "10 5"]
    asked = load(folder, "")

    def reply(text, _):
        return replies[next(i for i, question in enumerate(QUESTIONS) if question["text"] in text)]

    with serving(reply) as server:
        judge = Judge("m", server.url, waits_s=())
        responses = [Response(question, "An answer.") for question in asked]
        reviews = review(judge, LLAVA_BENCH.judge, responses, folder / "reviews" / "run.jsonl")
    assert (len(reviews.marks), reviews.failures) == (3, 1)
    assert [request["temperature"] for request in server.requests] == [0.2] * 6
    # All: (6 + 9 + 5) / (8 + 9 + 10) = 20 / 27; conv: (6 + 5) / (8 + 10) = 11 / 18; detail: 9 / 9; the only
    # review of complex cannot be read.
    expected = {"all": 100 * 20 / 27, "conv": 100 * 11 / 18, "detail": 100.0}
    assert metrics(reviews.marks) == pytest.approx(expected)
    assert next(iter(metrics(reviews.marks))) == "all"


def test_a_response_without_an_answer_loses_against_a_perfect_reference(folder):
    asked = load(folder, "")
    responses = [Response(asked[0], "An answer."), Response(asked[3], "", error="no image")]
    with serving(lambda *_: "8 6") as server:
        reviews = review(Judge("m", server.url), LLAVA_BENCH.judge, responses, folder / "run.jsonl")
    assert len(server.requests) == 1
    # The judge gives 6 against 8, and the missing answer counts as 0 against 10.
    assert metrics(reviews.marks)["all"] == pytest.approx(100 * 6 / 18)


def test_a_reference_without_a_point_divides_nothing():
    assert metrics([Mark("a", 0.5, "conv", expected="0.0")]) == {"all": 0, "conv": 0}
    assert metrics([]) == {"all": 0}


def test_a_record_is_llavas(folder):
    question = load(folder, "")[2]
    assert record(Response(question, "Because."), "8, 7\nWell.") == {
        "id": 3,
        "question_id": 2,
        "answer1_id": "r2",
        "answer2_id": None,  # the benchmark's runner knows answers by their question
        "category": "complex",
        "content": "8, 7\nWell.",
        "tuple": [8.0, 7.0],
    }


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("context.jsonl", "question 0 has no context in .*context.jsonl"),
        ("answers_gpt4.jsonl", "question 0 has no answer in .*answers_gpt4.jsonl"),
    ],
)
def test_a_question_without_what_the_judge_needs_is_named(folder, file, sentence):
    (folder / file).write_text("")
    with pytest.raises(UserError, match=sentence):
        load(folder, "")


def test_a_category_without_a_rule_is_named(folder):
    write_lines(folder / "questions.jsonl", [QUESTIONS[0] | {"category": "math"}])
    with pytest.raises(UserError, match="question 0 has no rule llava_bench_math in .*rule.json"):
        load(folder, "")


@pytest.mark.parametrize(
    "text", ["[]", '{"llava_bench_conv": "rate"}', '{"llava_bench_conv": {"role": "A"}}']
)
def test_rules_that_are_none_are_refused(tmp_path, text):
    (tmp_path / "rule.json").write_text(text)
    with pytest.raises(UserError, match="rule.json"):
        read_rules(tmp_path / "rule.json")


def test_the_miniature_can_be_judged(miniatures):
    questions = load(miniatures / LLAVA_BENCH.folder, "")
    assert len(questions) == 24
    assert all("[Context]\nAn image" in messages(Response(q, ""))[1]["content"] for q in questions)
