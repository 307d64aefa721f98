"""MM-Vet: what is asked, the table that the judge completes, and points by capability."""

import json

import pytest

from llava.errors import UserError
from llava.eval.benchmark import Mark, Response
from llava.eval.benchmarks.mmvet import HEADER, MMVET, export, load, messages, metrics, points, record
from llava.eval.judge import Judge
from llava.eval.reviews import review
from tests.eval.judge_server import serving

LINES = [
    {"question_id": 0, "image": "v1_0.png", "text": "What is x in the equation?"},
    {"question_id": 1, "image": "v1_0.png", "text": "What is on the sign?"},
    {"question_id": 2, "image": "v1_2.jpg", "text": "Describe\nthe picture."},
]
TRUTHS = {
    "v1_0": {"answer": "-1<AND>-5", "capability": ["ocr", "math"]},
    "v1_1": {"answer": "stop<OR>a stop sign", "capability": ["ocr"]},
    "v1_2": {"answer": "a dog on a lawn", "capability": ["rec", "gen"]},
}


@pytest.fixture
def folder(tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "llava-mm-vet.jsonl").write_text(text)
    (tmp_path / "mm-vet.json").write_text(json.dumps(TRUTHS))
    return tmp_path


def test_questions_are_asked_as_they_stand_in_the_file(folder):
    questions = load(folder, "")
    assert [question.text for question in questions] == [line["text"] for line in LINES]
    assert {(question.prompt, question.clip_text) for question in questions} == {(None, None)}
    assert questions[2].image == folder / "images" / "v1_2.jpg"
    assert [question.unit for question in questions] == ["v1_0.png", "v1_0.png", "v1_2.jpg"]
    assert MMVET.generation.max_new_tokens == 1024


def test_the_judge_completes_the_last_row_of_a_table(folder):
    (message,) = messages(Response(load(folder, "")[0], "It is -1\nor -5."))
    instruction, table = message["content"].split("\n\n")
    assert message["role"] == "user"
    assert "<AND>" in instruction
    assert "<OR>" in instruction
    rows = table.split("\n")
    assert rows[0] == "Question | Ground truth | Prediction | Correctness"
    assert rows[-1] == "What is x in the equation? | -1 <AND> -5 | It is -1 or -5. | "
    examples = [row.split(" | ") for row in rows[2:-1]]
    assert all(len(row) == len(HEADER) and points(row[-1]) is not None for row in examples)
    # Right, wrong and partly right ones.
    assert {"0.0", "0.5", "1.0"} < {row[-1] for row in examples}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("0.5", 0.5),
        (" 1.0\n", 1.0),
        ("0 because nothing is right", 0.0),
        ("1.5", None),
        ("-0.1", None),
        ("nan", None),
        ("Correctness: 0.5", None),
        ("", None),
    ],
)
def test_the_first_word_is_read_as_points(reply, expected):
    assert points(reply) == expected


def test_a_question_counts_for_every_capability_that_it_needs():
    marks = [
        Mark("a", 1.0, "ocr,math"),
        Mark("a", 0.4, "ocr"),
        Mark("b", 0.0, "rec,gen"),  # such as one without an answer
    ]
    # The total is a third of 1 + 0.4 + 0; ocr is needed by the first two, whose mean is 0.7.
    expected = {"total": 140 / 3, "gen": 0, "math": 100, "ocr": 70, "rec": 0}
    assert metrics(marks) == pytest.approx(expected)
    assert next(iter(metrics(marks))) == "total"


def test_a_judge_scores_and_an_unreadable_reply_is_asked_for_at_rising_temperatures(folder):
    asked = load(folder, "")
    replies = {"equation": "1.0", "sign": "?"}

    def reply(text, _):
        return next(value for name, value in replies.items() if name in text.split("\n")[-1])

    responses = [
        Response(asked[0], "-1 and -5"),
        Response(asked[1], "go"),
        Response(asked[2], "", error="no image"),
    ]
    with serving(reply) as server:
        judge = Judge("m", server.url, waits_s=())
        reviews = review(judge, MMVET.judge, responses, folder / "reviews" / "run.jsonl")
    assert reviews.marks == (Mark("v1_0.png", 1.0, "ocr,math"), Mark("v1_2.jpg", 0.0, "rec,gen"))
    assert reviews.failures == 1
    asked_for = sorted(
        r["temperature"] for r in server.requests if "sign" in r["messages"][0]["content"][-60:]
    )
    assert asked_for == [0.0, 0.4, 0.8, 1.2, 1.6, 2.0]


def test_a_record_holds_what_was_judged(folder):
    assert record(Response(load(folder, "")[0], "-1"), "0.5") == {
        "question_id": 0,
        "answer": "-1",
        "capability": ["ocr", "math"],
        "content": "0.5",
        "score": 0.5,
    }


def test_without_the_official_file_questions_are_asked_and_cannot_be_judged(folder):
    (folder / "mm-vet.json").unlink()
    questions = load(folder, "")
    assert [question.target for question in questions] == [None] * 3
    with pytest.raises(UserError, match="question 0 of MM-Vet cannot be judged without mm-vet.json"):
        messages(Response(questions[0], "-1"))


@pytest.mark.parametrize(
    ("official", "sentence"),
    [
        ("[]", "mm-vet.json has no question v1_0"),
        ('{"v1_1": {}}', "mm-vet.json has no question v1_0"),
        ('{"v1_0": {"answer": "a"}}', "v1_0 lacks 'capability'"),
    ],
)
def test_an_official_file_that_does_not_fit_is_named(folder, official, sentence):
    (folder / "mm-vet.json").write_text(official)
    with pytest.raises(UserError, match=sentence):
        load(folder, "")


def test_the_export_is_what_the_official_scorer_reads(folder):
    questions = load(folder, "")
    responses = [Response(questions[0], "x = -1"), Response(questions[1], "", error="no image")]
    path = export(responses, folder, "", "run")
    assert path == folder / "results" / "run.json"
    assert path.read_text() == '{\n  "v1_0": "x = -1",\n  "v1_1": ""\n}\n'


def test_the_miniature_can_be_judged(miniatures):
    questions = load(miniatures / MMVET.folder, "")
    assert len(questions) == 24
    assert all(messages(Response(question, "")) for question in questions)
