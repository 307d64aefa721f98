"""Q-Bench: prompts in both languages, options by letter or words, the items with responses."""

import json

import pytest

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Response
from llava.eval.benchmarks.qbench import QBENCH, export, load, mark

ITEM = {
    "img_path": "a.jpg",
    "question": "Is it sharp?",
    "candidates": ["Yes", "No"],
    "correct_ans": "No",
    "type": 0,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images_llviqionqa").mkdir()  # spelt as in LLaVA's documentation
    (tmp_path / "llvisionqa_dev.json").write_text(
        json.dumps([ITEM, {**ITEM, "type": 1, "correct_ans": "Yes"}])
    )
    return tmp_path


def test_prompts_have_the_options_as_lines(folder):
    question = load(folder, "llvisionqa_dev")[0]
    assert question.text == "Is it sharp?\nChoose between one of the options as follows:\nA. Yes\nB. No"
    assert question.clip_text is None
    assert question.image == folder / "images_llviqionqa" / "a.jpg"
    assert QBENCH.template == "llava_v1"


def test_chinese_questions_are_asked_in_chinese(folder):
    name = QBENCH.splits[2]
    (folder / f"{name}.json").write_text(json.dumps([ITEM]))
    assert load(folder, name)[0].text.splitlines()[1] == "请从下列选项中选择一个:"


def test_more_than_ten_options_have_letters(folder):
    item = {**ITEM, "candidates": list("abcdefghijk"), "correct_ans": "k"}
    (folder / "llvisionqa_dev.json").write_text(json.dumps([item]))
    (question,) = load(folder, "llvisionqa_dev")
    assert question.text.endswith("\nK. k")
    assert mark(Response(question, "K")).points == 1


def test_options_are_right_by_letter_or_by_words(folder):
    questions = load(folder, "llvisionqa_dev")
    texts = [("B", 1), ("No", 1), ("B. No", 1), ("A", 0), ("maybe", 0)]
    assert [mark(Response(questions[0], text)).points for text, _ in texts] == [points for _, points in texts]
    assert mark(Response(questions[0], "B", error="broken image")).points == 0


def test_without_public_answers_there_is_only_the_submission(folder):
    item = {key: value for key, value in ITEM.items() if key != "correct_ans"}
    (folder / "llvisionqa_test.json").write_text(json.dumps([item]))
    (question,) = load(folder, "llvisionqa_test")
    assert question.target is None
    path = export([Response(question, "B")], folder, "llvisionqa_test", "run")
    assert path == folder / "answers_upload" / "llvisionqa_test" / "run.jsonl"
    assert json.loads(path.read_text()) == {**item, "response": "B"}


def test_a_malformed_item_and_missing_images_are_said(folder):
    (folder / "llvisionqa_dev.json").write_text(json.dumps([{"question": "?"}]))
    with pytest.raises(UserError, match="llvisionqa_dev.json, item 0 lacks 'img_path', 'candidates'"):
        load(folder, "llvisionqa_dev")
    (folder / "images_llviqionqa").rmdir()
    with pytest.raises(MissingFileError, match="there is no images_llvisionqa or images_llviqionqa in"):
        load(folder, "llvisionqa_dev")
