"""TextVQA: questions recovered from prompts, joined with ten people's answers."""

import json

import pytest

from llava.errors import UserError
from llava.eval.benchmark import Response
from llava.eval.benchmarks.textvqa import load, question_of_prompt
from llava.eval.benchmarks.vqa import mark

INSTRUCTION = "Answer the question using a single word or phrase."


@pytest.mark.parametrize(
    "prompt",
    [
        f"What is it?\nReference OCR token: STOP, GO\n{INSTRUCTION}",
        f"Reference OCR token: STOP, GO\nWhat is it?\n{INSTRUCTION}",
        f"What is it?\n{INSTRUCTION}",
        "OCR tokens: STOP GO. Question: What is it? Short answer:",
    ],
)
def test_the_question_is_recovered_from_every_form_of_prompt(prompt):
    assert question_of_prompt(prompt) == "What is it?"


@pytest.mark.parametrize("prompt", ["What is it?", "a\nb\nc", "OCR tokens: STOP", "a\nb\nc\nd"])
def test_another_prompt_is_refused(prompt):
    with pytest.raises(UserError, match="is no prompt of TextVQA"):
        question_of_prompt(prompt)


@pytest.fixture
def folder(tmp_path):
    asked = ["What is it?\nReference OCR token: STOP", "Who?\nReference OCR token: "]
    texts = [f"{text}\n{INSTRUCTION}" for text in asked]
    lines = [{"question_id": "img1", "image": "img1.jpg", "text": text} for text in texts]
    path = tmp_path / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = [
        {"image_id": "img1", "question": "what is it?", "answers": ["stop"] * 8 + ["sign"] * 2},
        {"image_id": "img1", "question": "WHO?", "answers": ["nobody"] * 10},
    ]
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": data}))
    return tmp_path


def test_two_questions_about_one_image_have_their_own_answers(folder):
    first, second = load(folder, "")
    assert first.id == second.id == "img1"
    assert first.text.splitlines()[1] == "Reference OCR token: STOP"
    assert first.clip_text is None  # CLIP reads the OCR line too, as published
    assert first.image == folder / "train_images" / "img1.jpg"
    assert mark(Response(first, "Stop.")).points == 1
    assert mark(Response(first, "sign")).points == pytest.approx(0.6)  # 2 x 1/3 + 8 x 2/3 = 6 of 10
    assert mark(Response(second, "stop")).points == 0
    assert mark(Response(second, "")).points == 0
    assert mark(Response(second, "nobody", error="no image")).points == 0


def test_a_question_without_annotation_is_named(folder):
    (folder / "TextVQA_0.5.1_val.json").write_text('{"data": []}')
    with pytest.raises(UserError, match=r"the question 'what is it\?' about image img1 is not in TextVQA"):
        load(folder, "")
