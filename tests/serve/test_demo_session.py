"""What the demo does for a visitor: turns, reductions, comparisons, votes, and errors as they are."""

import json

import pytest
from PIL import Image

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.messages import Cost
from llava.serve.conversation_log import ConversationLog
from llava.serve.demo_page import REDUCTIONS
from llava.serve.demo_session import Demo, Settings, _describe_time, _describe_tokens
from tests.conftest import count_encodings

CROWDED, SHAPES = "images/crowded.png", "images/shapes.png"
GREEDY = Generation(max_new_tokens=12)


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(device="cpu")


@pytest.fixture
def demo(assistant):
    return Demo(assistant, "llava-shapes")


def settings(reduction="", template=""):
    return Settings(reduction, template, GREEDY)


def last(views):
    *_, view = views
    return view


def test_an_answer_comes_with_what_the_model_saw(demo):
    session, view = last(demo.ask(None, "What shape is the yellow object?", CROWDED, settings()))
    assert view.history == [
        {"role": "user", "content": "What shape is the yellow object?"},
        {"role": "assistant", "content": "circle"},
    ]
    assert view.answer == "circle"
    assert view.facts.startswith("**256 patches → 31 visual tokens** (88% fewer) · first token after **")
    assert view.kept.size == session.image.size == (448, 448)
    assert view.error == ""


def test_a_question_is_shown_before_its_answer(demo):
    _, view = next(demo.ask(None, "What color is the star?", SHAPES, settings()))
    assert view.history[0]["content"] == "What color is the star?"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_reduction_that_the_page_offers_answers(reduction, demo):
    _, view = last(demo.ask(None, "What color is the star?", SHAPES, settings(reduction)))
    assert view.error == ""
    assert view.answer
    assert view.kept.size == (448, 448)


def test_the_reduction_changes_between_turns_and_the_image_is_encoded_once(demo, monkeypatch):
    encoded = count_encodings(demo.assistant, monkeypatch)
    session, first = last(demo.ask(None, "What shape is the yellow object?", CROWDED, settings("TRIM:9")))
    session, second = last(demo.ask(session, "What shape is the pink object?", CROWDED, settings("none")))
    assert "10 visual tokens" in first.facts
    assert "256 patches → 256 visual tokens** ·" in second.facts
    assert len(second.history) == 4
    assert sum(encoded) == 1


def test_another_image_begins_anew(demo):
    session, _ = last(demo.ask(None, "What shape is the yellow object?", CROWDED, settings()))
    other, view = last(demo.ask(session, "What color is the star?", SHAPES, settings()))
    assert other is not session
    assert len(view.history) == 2


def test_an_answer_is_given_anew_with_other_settings(demo):
    session, _ = last(demo.ask(None, "What color is the star?", SHAPES, settings()))
    again, view = last(demo.regenerate(session, settings("TRIM:5")))
    assert again is session
    assert len(view.history) == 2
    assert "6 visual tokens" in view.facts
    assert len(session.chat.answers) == 1


@pytest.mark.parametrize(
    ("question", "image", "reduction", "message"),
    [
        ("", CROWDED, "", "the question is empty; ask something"),
        ("What?", "images/none.png", "", "there is no image file images/none.png"),
        ("What?", CROWDED, "TRIM:0", "'TRIM:0' is not a token reduction; accepted: "),
    ],
)
def test_what_fails_is_said_and_leaves_no_trace(question, image, reduction, message, demo):
    session, _ = last(demo.ask(None, "What shape is the yellow object?", CROWDED, settings()))
    after, view = last(demo.ask(session, question, image, settings(reduction)))
    assert view.error.startswith(message)
    assert after is session
    assert len(view.history) == 2  # the conversation so far is still there
    assert "visual tokens" in view.facts


def test_an_engine_that_fails_says_why(demo, monkeypatch):
    def fail():
        raise RuntimeError("CUDA out of memory: tried to allocate 2 GiB")

    monkeypatch.setattr(demo.assistant.router._engine, "step", fail)
    _, view = last(demo.ask(None, "What?", CROWDED, settings()))
    assert view.error == "the model failed: CUDA out of memory: tried to allocate 2 GiB"


def test_nothing_can_be_given_anew_before_anything_was_asked(demo):
    _, view = last(demo.regenerate(None, settings()))
    assert view.error == "there is no answer to give anew; ask something first"
    assert view.history == []


def test_two_settings_answer_one_question_beside_each_other(demo):
    views = list(
        demo.compare("What shape is the green object?", CROWDED, settings("TRIM:-1"), settings("none"))
    )
    left, right = views[-1]
    assert (left.answer, right.answer) == ("square", "square")
    assert "15 visual tokens" in left.facts
    assert "256 visual tokens" in right.facts
    assert left.kept.tobytes() != right.kept.tobytes()
    assert all(second.answer == "" for first, second in views[: len(views) // 3])  # one after the other


def test_questions_without_an_image_are_answered(demo):
    _, view = last(demo.ask(None, "Hello?", "", settings()))
    assert view.facts.startswith("no image · first token after")
    assert view.kept is None


def test_a_small_image_is_drawn_large_enough_to_see_its_patches(demo, tmp_path):
    Image.new("RGB", (100, 60), (200, 0, 0)).save(tmp_path / "small.png")
    _, view = last(demo.ask(None, "What?", str(tmp_path / "small.png"), settings()))
    assert view.kept.size == (500, 300)


def test_conversations_and_votes_are_written_down(assistant, tmp_path):
    demo = Demo(assistant, "llava-shapes", ConversationLog(tmp_path))
    session, _ = last(
        demo.ask(None, "What color is the star?", SHAPES, settings(template="llava_v1"), "1.2.3.4")
    )
    assert demo.vote("upvote", session, "1.2.3.4")
    assert not demo.vote("flag", None)
    (path,) = tmp_path.glob("*-conv.json")
    chat, vote = [json.loads(line) for line in path.read_text().splitlines()]
    assert chat["type"] == "chat"
    assert chat["finish"] >= chat["start"]
    assert chat["state"]["messages"][0] == ["USER", "<image>\nWhat color is the star?"]
    assert chat["state"]["messages"][1][0] == "ASSISTANT"
    assert vote["type"] == "upvote"
    assert vote["state"] == chat["state"]
    assert "1.2.3.4" not in path.read_text()


def test_without_a_log_there_is_nothing_to_vote_for(demo):
    session, _ = last(demo.ask(None, "What color is the star?", SHAPES, settings()))
    assert not demo.vote("upvote", session)


def test_costs_are_told_in_one_line():
    cost = Cost(576, 121, 5, vision_ms=10.2, reduction_ms=3.1, prefill_ms=20.4, decode_ms=40.0)
    assert _describe_tokens(cost) == "**576 patches → 121 visual tokens** (79% fewer)"
    assert _describe_time(cost) == (
        "first token after **34 ms** (vision 10, reduction 3, prefill 20) · 5 tokens in 74 ms"
    )
