"""MMBench: the table, the prompts of every order, circular accuracy, and the sheet for the server."""

import base64
import csv
import io
from functools import partial

import openpyxl
import pytest
from PIL import Image

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Response
from llava.eval.benchmarks.mmbench import export, load, load_questions, mark, metrics, read_table

SPLIT = "mmbench_dev_20230712"
COLUMNS = [
    *("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"),
    *("source", "l2-category", "comment", "split"),
]
load_english = partial(load, "en")


def picture(color, mode="RGB", size=12):
    file = io.BytesIO()
    Image.new(mode, (size, size), color).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


RED = picture((255, 0, 0))


def row(index, answer="B", **changes):
    return {
        **dict.fromkeys(COLUMNS, ""),
        **{"index": index, "question": f"Question {index}?", "A": "red", "B": "blue", "C": "green"},
        **{"answer": answer, "category": "color", "image": RED, "split": "dev", **changes},
    }


@pytest.fixture
def write(tmp_path):
    def write(*rows, name=SPLIT):
        with (tmp_path / f"{name}.tsv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        return tmp_path

    return write


def test_a_question_is_asked_once_for_every_order_of_its_options(write):
    questions = load_english(write(row(7, hint="Look.\nClosely.")), SPLIT)
    assert len(questions) == 3
    shown = "Look.\nClosely.\nQuestion 7?\nA. blue\nB. green\nC. red"
    second = questions[1]
    assert second.text == f"{shown}\nAnswer with the option's letter from the given choices directly."
    assert second.prompt == second.clip_text == shown  # without the instruction, as published
    assert second.extra == {
        "round_id": 1,
        "options": ["blue", "green", "red"],
        "option_char": ["B", "C", "A"],
    }
    assert [question.target for question in questions] == ["B", "A", "C"]
    assert [question.id for question in questions] == [7, 7, 7]


def test_chinese_questions_are_asked_in_chinese(write):
    (first, *_) = load("cn", write(row(1), name="mmbench_dev_cn_20231003"), "mmbench_dev_cn_20231003")
    assert first.text.endswith("\n请直接回答选项字母。")


def test_one_round_without_the_request_is_what_llavas_command_asks_by_default(write):
    (question,) = load_questions(
        write(row(1)) / f"{SPLIT}.tsv", "en", all_rounds=False, with_instruction=False
    )
    assert question.text == question.prompt == "Question 1?\nA. red\nB. blue\nC. green"


@pytest.mark.parametrize("empty", ["", "nan", "None", "NaN", "N/A"])
def test_options_end_at_the_first_empty_one(empty, write):
    questions = load_english(write(row(1, B="blue", C=empty, D="black", hint=empty)), SPLIT)
    assert [question.extra["options"] for question in questions] == [["red", "blue"], ["blue", "red"]]
    assert questions[0].prompt.startswith("Question 1?")


@pytest.mark.parametrize("option", ["Na", "Null", "nil"])
def test_options_that_only_look_empty_are_asked(option, write):
    """Sodium is an option; pandas, with which the published code reads the table, keeps it as well."""
    (first, *_) = load_english(write(row(1, C=option, D="K")), SPLIT)
    assert first.extra["options"] == ["red", "blue", option, "K"]


def test_a_question_is_right_if_it_is_in_every_order(write):
    questions = load_english(write(row(1), row(2, answer="A", category="shape")), SPLIT)
    # Question 1 (B is right): in order, B; rotated, A; again, C: all three right. Question 2 (A): A is right,
    # then C is asked for and B is said, then words of an option are the right ones.
    texts = ["B", "A. blue", "(C)", "A", "B", "red"]
    marks = [mark(Response(q, text)) for q, text in zip(questions, texts, strict=True)]
    assert [item.points for item in marks] == [1, 1, 1, 1, 0, 1]
    assert metrics(marks) == {"circular accuracy": 50, "first order": 100, "color": 100, "shape": 0}


def test_what_cannot_be_read_or_failed_is_wrong(write):
    questions = load_english(write(row(1)), SPLIT)
    assert mark(Response(questions[0], "I see nothing")).points == 0
    assert mark(Response(questions[0], "B", error="broken image")).points == 0


def test_a_table_with_the_copies_in_other_orders_is_asked_as_it_is(write):
    copy = row(1_000_005, answer="A", A="blue", B="green", C="red")
    questions = load_english(write(row(5), copy), SPLIT)
    assert [(item.id, item.unit, item.target) for item in questions] == [(5, "5", "B"), (1_000_005, "5", "A")]
    marks = [mark(Response(questions[0], "B")), mark(Response(questions[1], "B"))]
    assert metrics(marks) == {"circular accuracy": 0, "first order": 100}


def test_images_are_in_rgb_and_shared_where_a_row_names_anothers(write):
    gray, named, other = row(1, image=picture(90, mode="L")), row(2, image="1"), row(3)
    questions = load_english(write(gray, named, other), SPLIT)
    images = {question.id: question.image for question in questions}
    assert images[1] is images[2]  # one object, so that it is encoded once
    assert images[1] is not images[3]
    assert images[1]().mode == "RGB"
    assert images[1]().getpixel((0, 0)) == (90, 90, 90)
    assert images[3]().getpixel((0, 0)) == (255, 0, 0)


def test_a_broken_image_is_said_when_it_is_read(write):
    (question, *_) = load_english(write(row(1, image="bm8gaW1hZ2U=")), SPLIT)
    with pytest.raises(UserError, match="the image of row 1 is not an image in a known format"):
        question.image()


def test_long_images_are_read_and_csvs_limit_stays(write):
    usual = csv.field_size_limit()
    long = "A" * (usual + 1)
    assert read_table(write(row(1, image=long)) / f"{SPLIT}.tsv")[0]["image"] == long
    assert csv.field_size_limit() == usual


def test_a_split_without_answers_is_only_for_submission(write):
    assert {question.target for question in load_english(write(row(1, answer="")), SPLIT)} == {None}


def test_the_sheet_has_the_answers_to_the_tables_own_order(write):
    folder = write(row(1), row(2, C=""))
    questions = load_english(folder, SPLIT)
    texts = ["B", "wrong", "wrong", "=1+1\x00", "wrong"]
    responses = [Response(question, text) for question, text in zip(questions, texts, strict=True)]
    path = export(responses, folder, SPLIT, "run")
    assert path == folder / "answers_upload" / SPLIT / "run.xlsx"
    lines = list(openpyxl.load_workbook(path).active.values)
    assert lines[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert lines[1] == (1, "Question 1?", "red", "blue", "green", None, "B", "B", "dev")
    assert lines[2][6] == "=1+1"  # a text, neither a formula nor with characters that no sheet takes
    assert openpyxl.load_workbook(path).active["G3"].data_type == "s"


def test_only_the_index_is_a_number_in_the_sheet(write):
    folder = write(row(1, A="007"))
    responses = [Response(load_english(folder, SPLIT)[0], "2")]
    lines = list(openpyxl.load_workbook(export(responses, folder, SPLIT, "run")).active.values)
    assert (lines[1][0], lines[1][2], lines[1][6]) == (1, "007", "2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tquestion\tA\tB\timage\n1\tq\ta\tb\ti\tx\n", "row 1 has more cells than the table has"),
        ("index\tquestion\n1\tq\n", "row 1 lacks A, B, image"),
        ("index\tquestion\tA\tB\timage\nx\tq\ta\tb\ti\n", "an index is 'x'; expected a whole number"),
    ],
)
def test_a_malformed_table_is_said(text, message, tmp_path):
    (tmp_path / f"{SPLIT}.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        load_english(tmp_path, SPLIT)


def test_a_missing_table_is_said(tmp_path):
    with pytest.raises(MissingFileError, match="there is no file"):
        load_english(tmp_path, SPLIT)
