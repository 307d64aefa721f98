"""LLaVA's web page without the page: conversations over a real controller and real workers."""

import json
from itertools import pairwise

import pytest

from llava.assistant import Assistant
from llava.conversation import choose_template
from llava.engine.base import Generation
from llava.errors import UserError
from llava.serve.conversation_log import ConversationLog
from llava.serve.demo_session import Settings
from llava.serve.model_worker import ModelWorker, create_app
from llava.serve.protocol import GenerateRequest
from llava.serve.worker_client import WorkerClient
from llava.serve.worker_session import WorkerDemo
from tests.serve.test_controller import controlling, nobody, register, serving

NAME = "llava-v1-shapes"  # whose template LLaVA's table names llava_v1
CROWDED, SHAPES = "images/crowded.png", "images/shapes.png"
GREEDY = Generation(max_new_tokens=12)
SETTINGS = Settings(generation=GREEDY, model=NAME)


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(device="cpu")


@pytest.fixture(scope="module")
def controller(assistant):
    with (
        serving(create_app(ModelWorker(assistant, NAME))) as worker,
        controlling(worker, model=NAME) as address,
    ):
        yield address


@pytest.fixture
def demo(controller):
    return WorkerDemo(WorkerClient(controller))


def last(views):
    *_, last = views
    return last


def test_models_are_listed(demo):
    assert demo.models() == [NAME]
    assert WorkerDemo(WorkerClient(nobody())).models() == []


def test_answers_are_those_of_the_model_turn_after_turn(demo, assistant):
    session, view = last(demo.ask(None, "What shape is the yellow object?", CROWDED, SETTINGS))
    session, view = last(demo.ask(session, "What shape is the pink object?", CROWDED, SETTINGS))
    chat = assistant.chat(CROWDED)
    chat.template = choose_template(None, NAME)
    expected = []
    for question in ("What shape is the yellow object?", "What shape is the pink object?"):
        expected += [question, chat.ask(question, generation=GREEDY).text]
    assert [turn["content"] for turn in view.history] == expected
    assert [turn["role"] for turn in view.history] == ["user", "assistant"] * 2
    assert view.facts == f"answered by `{NAME}`"


def test_an_answer_grows_behind_its_question(demo):
    views = [view for _, view in demo.ask(None, "What color is the star?", SHAPES, SETTINGS)]
    assert views[0].history[0]["content"] == "What color is the star?"
    texts = [view.answer for view in views[1:]]
    assert all(after.startswith(before) for before, after in pairwise(texts))


def test_another_image_begins_anew_and_regenerating_does_not(demo):
    first, _ = last(demo.ask(None, "What color is the star?", SHAPES, SETTINGS))
    again, view = last(demo.regenerate(first, SETTINGS))
    assert again is first and len(view.history) == 2
    other, view = last(demo.ask(first, "What shape is the yellow object?", CROWDED, SETTINGS))
    assert other is not first and len(view.history) == 2
    assert last(demo.regenerate(None, SETTINGS))[1].error.startswith("there is no answer to give anew")


@pytest.mark.parametrize(
    ("question", "image", "settings", "error"),
    [
        ("  <image>", SHAPES, SETTINGS, "there is no question"),
        ("What?", "pyproject.toml", SETTINGS, "is not an image"),
        ("What?", SHAPES, Settings(generation=GREEDY), "no model is chosen"),
        (
            "What?",
            SHAPES,
            Settings(generation=GREEDY, model="other"),
            f"no worker for 'other'; served: {NAME}",
        ),
        ("What?", SHAPES, Settings("", "nonsense", GREEDY, NAME), "'nonsense' is not a valid conversation"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_no_trace(demo, question, image, settings, error):
    session, view = last(demo.ask(None, question, image, settings))
    assert error in view.error
    assert view.history == []
    assert session is None or session.turns == []


def test_what_is_objected_to_is_not_asked(controller):
    demo = WorkerDemo(
        WorkerClient(controller), objection=lambda question: "no" if "bomb" in question else None
    )
    assert last(demo.ask(None, "A bomb?", "", SETTINGS))[1].error == "no"
    assert last(demo.ask(None, "A star?", "", SETTINGS))[1].error == ""


def test_a_lost_worker_is_replaced_once(demo, controller, assistant):
    register(controller, nobody(), {"model_names": ["twins"], "speed": 1, "queue_length": 0})
    with serving(create_app(ModelWorker(assistant, "twins"))) as worker:
        register(controller, worker, {"model_names": ["twins"], "speed": 1, "queue_length": 5})
        asked = GenerateRequest("What is it? ASSISTANT:", max_new_tokens=2)
        assert list(WorkerClient(controller).stream("twins", asked))
    with pytest.raises(UserError, match=r"no worker for 'twins'|does not answer"):
        list(WorkerClient(controller).stream("twins", asked))


def test_conversations_and_votes_are_written_as_llava_does(controller, tmp_path):
    demo = WorkerDemo(WorkerClient(controller), ConversationLog(tmp_path, log_images=True))
    assert not demo.vote("upvote", None)
    session, _ = last(demo.ask(None, "What color is the star?", SHAPES, SETTINGS, "127.0.0.1"))
    assert demo.vote("downvote", session, "127.0.0.1")
    (path,) = tmp_path.glob("*-conv.json")
    chat, vote = (json.loads(line) for line in path.read_text().splitlines())
    assert (chat["type"], vote["type"], chat["model"]) == ("chat", "downvote", NAME)
    assert chat["state"]["messages"][0][1] == "<image>\nWhat color is the star?"
    assert chat["finish"] >= chat["start"]
    assert len(list((tmp_path / "serve_images").rglob(f"{chat['images'][0]}.jpg"))) == 1
