"""The one road: whole, batched, streamed, multi-turn; its costs and its refusals."""

import time

import pytest
import torch

from llava.assistant import (
    Assistant,
    Generation,
    Question,
    bundled_checkpoint,
)
from llava.errors import MissingFileError, UserError
from tests.conftest import TINY_LLAVA

SHORT = Generation(max_new_tokens=8)


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1", token_reduction="TRIM:-1")


@pytest.fixture
def picture(pictures):
    return pictures["img0.png"]


def test_an_answer_says_what_it_cost_and_what_was_seen(assistant, picture):
    answer = assistant.answer("What is it?", picture, SHORT)
    assert answer.cost.patches == 576
    (kept,) = answer.kept
    assert kept.shape == (24, 24)
    assert answer.cost.visual_tokens == int(kept.sum()) + 1
    assert 1 <= answer.cost.new_tokens <= 8
    spent = (answer.cost.vision_ms, answer.cost.reduction_ms, answer.cost.first_token_ms, answer.cost.rest_ms)
    assert all(milliseconds > 0 for milliseconds in spent)


def test_a_batch_answers_as_each_question_alone(assistant, pictures):
    images = list(pictures.values())
    questions = [
        Question("What is it?", (images[0],)),
        Question("A much longer question about the picture: what is on the left?", (images[1],)),
        Question("Hello"),
        Question("Compare <image> with <image>.", (images[0], images[2])),
        Question("What is it?", (images[0],), token_reduction="none"),
        Question("What is it?", (images[0],), token_reduction="Random:9"),
    ]
    together = assistant.answer_all(questions, SHORT, batch_size=4)
    for question, answer in zip(questions, together, strict=True):
        (alone,) = assistant.answer_all([question], SHORT)
        assert answer.text == alone.text
        assert answer.cost.visual_tokens == alone.cost.visual_tokens
        assert all(torch.equal(a, b) for a, b in zip(answer.kept, alone.kept, strict=True))
    assert [answer.cost.visual_tokens for answer in together][4:] == [576, 10]
    assert together[2].cost.patches == together[2].cost.visual_tokens == 0


def test_streamed_pieces_join_to_the_whole_answer(assistant, picture):
    whole = assistant.answer("What is it?", picture, SHORT).text
    pieces = list(assistant.stream("What is it?", picture, SHORT))
    assert "".join(pieces) == whole
    assert len(pieces) > 1


def test_the_readers_own_time_is_no_cost_of_the_answer(assistant, picture):
    chat = assistant.chat(picture)
    for _ in chat.stream("What is it?", Generation(max_new_tokens=3)):
        time.sleep(0.5)
    cost = chat.answers[-1].cost
    without = assistant.answer("What is it?", picture, Generation(max_new_tokens=3)).cost
    assert cost.rest_ms < 500 + 3 * without.rest_ms  # three steps were slept through for half a second each


def count_encodings(assistant, monkeypatch):
    encoded = []
    tower = assistant.model.get_vision_tower()
    encode = tower.encode
    monkeypatch.setattr(tower, "encode", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    return encoded


def test_several_questions_about_one_picture_encode_it_once(assistant, picture, monkeypatch):
    encoded = count_encodings(assistant, monkeypatch)
    assistant.answer_all([Question(text, (picture,)) for text in ("What?", "Why?", "Who?")], SHORT)
    assert encoded == [1]


def test_each_turn_reduces_the_picture_anew_for_its_question(assistant, picture, monkeypatch):
    encoded = count_encodings(assistant, monkeypatch)
    chat = assistant.chat(picture)
    first, second = chat.ask("What is it?", SHORT), chat.ask("Is there a bicycle in the image?", SHORT)
    assert encoded == [1]
    assert second.cost.vision_ms < first.cost.vision_ms
    assert not torch.equal(first.kept[0], second.kept[0])
    alone = assistant.answer("Is there a bicycle in the image?", picture, SHORT)
    assert torch.equal(second.kept[0], alone.kept[0])
    assert chat.prompt.count("<image>") == 1
    assert f"ASSISTANT: {first.text}</s>USER: Is there a bicycle" in chat.prompt
    assert chat.answers == [first, second]


def test_a_turn_that_is_given_up_leaves_no_trace(assistant, picture):
    chat = assistant.chat(picture)
    stream = chat.stream("What is it?", SHORT)
    next(stream)
    stream.close()
    with pytest.raises(UserError):
        chat.ask("   ")
    assert chat.answers == []
    answer = chat.ask("What is it?", SHORT)
    assert answer.text == assistant.answer("What is it?", picture, SHORT).text


def test_a_chat_changes_its_reduction_between_turns(assistant, picture):
    chat = assistant.chat(picture)
    chat.token_reduction = "TRIM:10"
    assert chat.ask("What?", SHORT).cost.visual_tokens == 11
    chat.token_reduction = "none"
    assert chat.ask("What?", SHORT).cost.visual_tokens == 576
    chat.token_reduction = "TRIM:zero"
    with pytest.raises(UserError, match="accepted"):
        chat.ask("What?", SHORT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<image>", "empty"),
        ("<image> <image> what?", "2 <image> placeholders in the question, 1 images given"),
    ],
)
def test_questions_that_make_no_sense(text, message, assistant, picture):
    with pytest.raises(UserError, match=message):
        assistant.answer(text, picture)


def test_a_prompt_longer_than_the_model_reads_is_refused_not_cut(assistant, picture, monkeypatch):
    monkeypatch.setattr(assistant.model.config, "tokenizer_model_max_length", 60, raising=False)
    with pytest.raises(UserError, match="at most 59"):
        assistant.answer("What is it?", picture)


def test_a_question_for_one_request_loads_the_text_half_when_it_is_needed(picture):
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1")
    tower = assistant.model.get_vision_tower()
    assert assistant.answer("What?", picture, SHORT).cost.visual_tokens == 576
    assert tower.text_tower is None
    (answer,) = assistant.answer_all([Question("What?", (picture,), "TRIM:-1")], SHORT)
    assert answer.cost.visual_tokens < 576
    assert assistant.answer("What?", picture, SHORT).cost.visual_tokens == 576


def test_pictures_need_eyes(assistant, picture, monkeypatch):
    monkeypatch.setattr(assistant.model.model, "vision_tower", None)
    with pytest.raises(UserError, match="without a vision tower"):
        assistant.answer("What?", picture)


def test_an_unknown_template_is_refused_before_the_model_is_loaded():
    with pytest.raises(UserError, match=r"'nonsense'.*vicuna_v1"):
        Assistant.load("/nowhere", conv_mode="nonsense")


def test_without_the_repository_the_bundled_model_says_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setattr("llava.assistant.SHAPES_CHECKPOINT", tmp_path / "none")
    with pytest.raises(MissingFileError, match="clone of the repository"):
        bundled_checkpoint()
