"""The HTTP server, asked over real connections: by OpenAI's client, by many at once, by those who leave."""

import argparse
import base64
import contextlib
import http.server
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings

from llava import public_web
from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.engine.transformers_engine import TransformersEngine
from llava.errors import UserError
from llava.image_io import load_image
from llava.messages import Message, Request
from llava.mm_utils import tokenizer_image_token
from llava.model.loading import LoadedModel
from llava.serve import api, api_server
from llava.serve.api import ApiServer, ChatCompletions, Settings
from llava.serve.api_server import address, find_key
from llava.serve.web import listen
from tests.conftest import TINY_LLAVA
from tests.serve.test_api_messages import bodies, data_url

NAME = "llava-shapes"
PATHS = [Path(__file__).parents[2] / "images" / name for name in ("crowded.png", "shapes.png")]
QUESTIONS = (
    "What color is the star?",
    "What shape is the yellow object?",
    "Is there a blue circle?",
    "Hello",
)
LONG = {"max_tokens": 1500, "messages": [{"role": "user", "content": "Tell me a long story."}]}


class Served:
    """A server on a port of its own."""

    def __init__(self, completions, url):
        self.completions = completions
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=60)

    def client(self, key="none", **more):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **more)

    def post(self, body, **more):
        return self.http.post("/v1/chat/completions", json=body, **more)

    def wait_until_idle(self, seconds=10):
        wait_for(lambda: self.completions.running + self.completions.waiting == 0, seconds)


@contextlib.contextmanager
def serving(assistant, send_buffer=None, **chosen):
    completions = ChatCompletions(assistant, Settings((NAME, "./llava-shapes"), **chosen))
    server = ApiServer(completions)
    with listen("127.0.0.1", 0) as listener:
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        served = Served(completions, address(listener))
        try:
            yield served
        finally:
            served.http.close()
            server.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive()


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(device="cpu")


@pytest.fixture(scope="module")
def talker():
    """A model of random weights, which never ends by itself."""
    return Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1")


@pytest.fixture(scope="module")
def served(assistant):
    # A server of another test in this process may have turned it off for good.
    logging.getLogger("uvicorn.access").propagate = True
    with serving(assistant) as one:
        yield one


@pytest.fixture(scope="module")
def images():
    return [load_image(path) for path in PATHS]


@pytest.fixture(scope="module")
def urls():
    return [data_url_of(path) for path in PATHS]


def ask(question, *urls):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question}]}]


def text_tokens(assistant, request):
    return len(tokenizer_image_token(assistant.render(request), assistant.tokenizer)) - len(request.images)


def rows(assistant):
    engine = assistant.router._engine
    return len(engine._rows) + len(engine._waiting)


def test_openais_client_gets_the_answer_that_the_assistant_gives(served, assistant, images, urls):
    for question in QUESTIONS[:3]:
        expected = assistant.answer(question, images[0])
        found = served.client().chat.completions.create(model=NAME, messages=ask(question, urls[0]))
        (choice,) = found.choices
        assert choice.message.content == expected.text
        assert choice.message.role == "assistant"
        assert choice.finish_reason == "stop"
        assert found.object == "chat.completion"
        assert found.model == NAME


def test_a_stream_gives_the_same_answer_piece_by_piece(served, assistant, images, urls):
    expected = assistant.answer(QUESTIONS[0], images[0])
    chunks = list(
        served.client().chat.completions.create(
            model=NAME,
            messages=ask(QUESTIONS[0], urls[0]),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == expected.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == expected.cost.new_tokens
    assert chunks[0].usage is None


def test_a_stream_ends_with_done_and_has_no_usage_unless_it_is_asked_for(served):
    response = served.post({"messages": ask("Hello"), "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.text.split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in json.loads(line.removeprefix("data: ")) for line in lines[:-1])


def test_the_usage_counts_text_visual_tokens_and_patches(served, assistant, images, urls):
    expected = assistant.answer(QUESTIONS[0], images[0])
    usage = served.client().chat.completions.create(model=NAME, messages=ask(QUESTIONS[0], urls[0])).usage
    text = text_tokens(assistant, Request.ask(QUESTIONS[0], images[0]))
    assert usage.prompt_tokens == text + expected.cost.visual_tokens
    assert usage.completion_tokens == expected.cost.new_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.visual_tokens == expected.cost.visual_tokens
    assert usage.prompt_tokens_details.patches == expected.cost.patches > expected.cost.visual_tokens


def test_each_request_may_set_its_reduction(served, urls):
    def visual_tokens(setting):
        answer = served.client().chat.completions.create(
            model=NAME, messages=ask(QUESTIONS[0], urls[0]), extra_body={"token_reduction": setting}
        )
        details = answer.usage.prompt_tokens_details
        return details.visual_tokens, details.patches

    _, patches = visual_tokens("none")
    assert visual_tokens("none") == (patches, patches)
    assert visual_tokens("TRIM:8") == (9, patches)
    assert visual_tokens("Random:3") == (4, patches)


def test_a_conversation_with_images_between_texts_is_answered_as_it_stands(served, assistant, images, urls):
    def part(url):
        return {"type": "image_url", "image_url": {"url": url}}

    turns = [
        {"role": "system", "content": "Answer with a word."},
        {"role": "user", "content": [{"type": "text", "text": "Look:"}, part(urls[0]), part(urls[1])]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "What color is the star?"},
    ]
    request = Request(
        (
            Message("system", "Answer with a word."),
            Message("user", "Look:\n<image>\n<image>", tuple(images)),
            Message("assistant", "Yes."),
            Message("user", "What color is the star?"),
        )
    )
    (expected,) = assistant.answer_all([request])
    found = served.client().chat.completions.create(model=NAME, messages=turns)
    assert found.choices[0].message.content == expected.text
    assert found.usage.prompt_tokens == text_tokens(assistant, request) + expected.cost.visual_tokens


def test_stop_texts_lengths_and_seeds_are_followed(served, assistant, talker):
    whole = assistant.answer("Hello").text
    client = served.client().chat.completions
    cut = client.create(model=NAME, messages=ask("Hello"), max_tokens=1)
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage.completion_tokens == 1
    stopped = client.create(model=NAME, messages=ask("Hello"), stop=[whole[-1]])
    assert stopped.choices[0].message.content == whole[: whole.index(whole[-1])].rstrip()
    with serving(talker) as one:
        sampled = [
            one.client().chat.completions.create(
                model=NAME, messages=ask("Hello"), temperature=2, top_p=0.9, seed=seed, max_tokens=12
            )
            for seed in (1, 1, 2)
        ]
    texts = [answer.choices[0].message.content for answer in sampled]
    assert texts[0] == texts[1] != texts[2]


def test_32_at_once_get_exactly_one_complete_right_answer_each(served, assistant, images, urls):
    cases = [(QUESTIONS[i % 4], i % 2, ("TRIM:-1", "none", "TRIM:16")[i % 3]) for i in range(32)]
    expected = {
        case: next(assistant.answer_all([Request.ask(case[0], images[case[1]], token_reduction=case[2])]))
        for case in set(cases)
    }

    def work(index):
        question, image, reduction = case = cases[index]
        create = served.client().chat.completions.create
        asked = {"model": NAME, "messages": ask(question, urls[image])}
        if index % 2:
            found = create(**asked, extra_body={"token_reduction": reduction})
            return found.choices[0].message.content == expected[case].text
        chunks = list(create(**asked, stream=True, extra_body={"token_reduction": reduction}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]
        return text == expected[case].text and ends == ["stop"]

    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(work, range(32))) == [True] * 32
    served.wait_until_idle()


def test_who_leaves_in_the_middle_of_a_stream_frees_the_slot(talker):
    with serving(talker) as one:
        with one.http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
            next(response.iter_lines())
            assert one.completions.running == 1
        one.wait_until_idle(5)
        list(talker.answer_all([Request.ask("Hi", generation=Generation(max_new_tokens=1))]))
        assert rows(talker) == 0
        assert one.completions.metrics.requests[api.CLIENT_GONE] == 1


def test_who_leaves_before_the_answer_frees_the_slot_and_the_place_in_the_queue(talker):
    with serving(talker, concurrency=1, queue=1) as one, ThreadPoolExecutor(2) as pool:

        def leave():
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{one.url}/v1/chat/completions", json=LONG, timeout=0.5)

        for future in [pool.submit(leave), pool.submit(leave)]:
            future.result()
        one.wait_until_idle(5)
        assert one.completions.metrics.requests[api.CLIENT_GONE] == 2
        assert one.post({**LONG, "max_tokens": 2}).status_code == 200
        assert rows(talker) == 0


def test_who_leaves_while_sending_a_body_frees_the_place(served):
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        wait_for(lambda: served.completions.waiting == 1)
    served.wait_until_idle(5)


def test_a_body_that_does_not_come_is_waited_for_in_bounds(assistant, monkeypatch):
    monkeypatch.setattr(api, "BODY_SECONDS", 0.2)

    def slowly():
        yield b"{"
        time.sleep(2)
        yield b"}"

    with serving(assistant) as one:
        response = one.http.post(
            "/v1/chat/completions", content=slowly(), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 408
        assert "did not come within 0.2 seconds" in response.json()["error"]["message"]


def test_who_takes_nothing_of_a_stream_counts_as_gone(talker, monkeypatch):
    monkeypatch.setattr(api, "STALL_SECONDS", 0.3)
    with serving(talker, send_buffer=1) as one:
        host, port = one.url.removeprefix("http://").split(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect((host, int(port)))
            body = json.dumps({**LONG, "max_tokens": 100_000, "stream": True}).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: one.completions.running == 1)
            one.wait_until_idle(60)
    assert one.completions.metrics.requests == {api.CLIENT_GONE: 1}


def test_more_than_may_wait_are_told_to_come_back(talker):
    with serving(talker, concurrency=1, queue=1) as one, ThreadPoolExecutor(2) as pool:
        client = one.client()
        busy = [pool.submit(one.post, LONG)]
        wait_for(lambda: one.completions.running == 1)
        busy.append(pool.submit(one.post, {**LONG, "max_tokens": 2}))
        wait_for(lambda: (one.completions.running, one.completions.waiting) == (1, 1))
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model=NAME, messages=ask("Hello"))
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["code"] == "overloaded"
        assert "1 requests are being answered and 1 wait already" in caught.value.body["message"]
        metrics = one.http.get("/metrics").text.splitlines()
        assert "llava_requests_running 1" in metrics
        assert "llava_requests_waiting 1" in metrics
        assert one.http.get("/health").json() == {"status": "ok"}
        assert [future.result().status_code for future in busy] == [200, 200]
        assert one.post({**LONG, "max_tokens": 1}).status_code == 200


def test_without_the_key_nothing_but_the_health_is_served(assistant):
    with serving(assistant, api_key="secret") as one:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            for method, path in (
                ("GET", "/v1/models"),
                ("GET", "/metrics"),
                ("GET", "/"),
                ("POST", "/v1/chat/completions"),
            ):
                response = one.http.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert one.http.get("/health").json() == {"status": "ok"}
        with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
            one.client("wrong").models.list()
        client = one.client("secret")
        assert [model.id for model in client.models.list()] == [NAME]
        assert client.chat.completions.create(model=NAME, messages=ask("Hello")).choices[0].message.content
        metrics = one.http.get("/metrics", headers={"Authorization": "Bearer secret"}).text
        assert 'llava_requests_total{status="401"} 13' in metrics


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"messages": []}, 400, "messages is missing or empty"),
        ({"messages": ask("")}, 400, "the question is empty; ask something"),
        ({"messages": ask("Hi", "https://example.org/a.png")}, 400, "nothing is fetched"),
        ({"messages": ask("Hi", "data:image/png;base64,AAAA")}, 400, "is not an image in a known format"),
        ({"messages": ask("Hi", *["data:image/png;base64,AAAA"] * 9)}, 400, "9 images; accepted: up to 8"),
        ({"messages": ask("red " * 9000)}, 400, "and this model reads at most"),
        ({"messages": ask("Hi"), "token_reduction": "TRIM:0"}, 400, "'TRIM:0' is not a token reduction"),
        (
            {"messages": ask("Hi"), "model": "gpt\ud800"},
            404,
            "there is no model 'gpt\\ud800' here; accepted:",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(served, body, status, sentence):
    for stream in (False, True):
        response = served.http.post(
            "/v1/chat/completions",
            content=json.dumps({**body, "stream": stream}),
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code == status
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert sentence in error["message"]
        assert "\n" not in error["message"]


def test_a_small_file_of_a_huge_image_is_refused(served):
    response = served.post({"messages": ask("What?", data_url("white", (20_000, 1)))})
    assert response.status_code == 400
    assert "too many pixels" in response.json()["error"]["message"]


def test_errors_name_the_field_as_openais_client_reads_it(served):
    with pytest.raises(openai.BadRequestError) as caught:
        served.client().chat.completions.create(model=NAME, messages=ask("Hi"), n=2)
    assert caught.value.param == "n"
    with pytest.raises(openai.NotFoundError) as missing:
        served.client().chat.completions.create(model="gpt-4", messages=ask("Hi"))
    assert missing.value.code == "model_not_found"


def test_the_model_may_be_left_out_or_called_by_its_path(served):
    for more in ({}, {"model": None}, {"model": "./llava-shapes"}):
        response = served.post({"messages": ask("Hello"), **more})
        assert response.json()["model"] == NAME


def test_a_body_beyond_the_limit_is_not_read(assistant):
    def chunks():
        for _ in range(300):
            yield b" " * 10_000

    with serving(assistant, body_bytes=100_000) as one:
        headers = {"Content-Type": "application/json"}
        for content in (b" " * 100_001, chunks()):
            response = one.http.post("/v1/chat/completions", content=content, headers=headers)
            assert response.status_code == 413
            assert "accepted: up to 100000 bytes" in response.json()["error"]["message"]
        assert one.post({"messages": ask("Hello")}).status_code == 200


def test_other_types_than_json_are_refused(served):
    for headers in ({}, {"Content-Type": "text/plain"}):
        response = served.http.post("/v1/chat/completions", content=b"{}", headers=headers)
        assert response.status_code == 415


def test_what_is_not_served_has_openais_error_too_and_no_page_is_open(served):
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/v1/models/"):
        response = served.http.get(path)
        assert response.status_code == 404
        assert response.json()["error"]["message"] == f"GET {path} is not served here: Not Found"
    response = served.http.get("/v1/chat/completions")
    assert response.status_code == 405
    assert "error" in response.json()


def test_pages_of_other_sites_get_no_permission(served):
    headers = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for response in (
        served.http.options("/v1/chat/completions", headers=headers),
        served.http.get("/v1/models", headers=headers),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_metrics_count_what_was_answered(assistant, images, urls):
    expected = assistant.answer(QUESTIONS[0], images[0]).cost
    with serving(assistant) as one:
        usage = [
            one.post({"messages": ask(QUESTIONS[0], urls[0])}).json()["usage"],
            one.post({"messages": ask(QUESTIONS[0], urls[0])}).json()["usage"],
        ]
        one.post({"messages": []})
        one.wait_until_idle()
        response = one.http.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = response.text.splitlines()
    for line in (
        'llava_requests_total{status="200"} 2',
        'llava_requests_total{status="400"} 1',
        f"llava_prompt_tokens_total {2 * usage[0]['prompt_tokens']}",
        f"llava_visual_tokens_total {2 * expected.visual_tokens}",
        f"llava_completion_tokens_total {2 * expected.new_tokens}",
        f"llava_patches_total {2 * expected.patches}",
        "llava_time_to_first_token_seconds_count 2",
        "llava_answer_seconds_count 2",
        "llava_requests_running 0",
        "llava_requests_waiting 0",
    ):
        assert line in lines


class FailingEngine(TransformersEngine):
    """Has no memory left in its third step."""

    def step(self):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 3:
            raise RuntimeError("CUDA out of memory: tried to allocate 1.00 GiB")
        return super().step()


@pytest.mark.parametrize("stream", [False, True])
def test_what_an_engine_says_when_it_fails_reaches_the_client(talker, stream):
    loaded = LoadedModel(talker.tokenizer, talker.model, talker.image_processor, 2048)
    failing = Assistant(loaded, talker.template, FailingEngine(talker.model, talker.tokenizer))
    with serving(failing) as one:
        response = one.post({**LONG, "stream": stream})
        if stream:
            *pieces, last = [line for line in response.text.split("\n\n") if line]
            assert response.status_code == 200
            assert pieces
            error = json.loads(last.removeprefix("data: "))["error"]
            with pytest.raises(openai.APIError, match="out of memory"):
                failing.router._engine.steps = 0
                list(one.client().chat.completions.create(model=NAME, stream=True, **LONG))
        else:
            assert response.status_code == 500
            error = response.json()["error"]
        assert error["message"] == "RuntimeError: CUDA out of memory: tried to allocate 1.00 GiB"
        assert error["type"] == "server_error"
        assert one.post({**LONG, "max_tokens": 4}).status_code == 200
        assert one.completions.metrics.requests[500] == 1 + stream


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_for_an_answer_when_the_server_ends_is_told(talker, monkeypatch, stream):
    monkeypatch.setattr(api, "GRACE_SECONDS", 0.3)
    with ThreadPoolExecutor(1) as pool:
        with serving(talker) as one:
            future = pool.submit(
                httpx.post, f"{one.url}/v1/chat/completions", json={**LONG, "stream": stream}
            )
            wait_for(lambda: one.completions.running == 1)
        response = future.result()
    if stream:
        last = [line for line in response.text.split("\n\n") if line][-1]
        error = json.loads(last.removeprefix("data: "))["error"]
    else:
        assert response.status_code == 503
        error = response.json()["error"]
    assert error["message"] == "the server is being stopped"


def test_an_answer_that_is_almost_ready_is_finished_when_the_server_ends(talker):
    with ThreadPoolExecutor(1) as pool:
        with serving(talker) as one:
            future = pool.submit(
                httpx.post, f"{one.url}/v1/chat/completions", json={**LONG, "max_tokens": 600}
            )
            wait_for(lambda: one.completions.running == 1)
        assert future.result().json()["usage"]["completion_tokens"] == 600


@pytest.mark.slow
def test_an_answer_ends_where_the_models_context_does(talker):
    with serving(talker) as one:
        found = one.post({"messages": ask("word " * 1900), "max_tokens": 10**12}).json()
        too_long = one.post({"messages": ask("word " * 9000)})
    assert found["usage"]["total_tokens"] == talker.model.config.max_position_embeddings
    assert found["choices"][0]["finish_reason"] == "length"
    assert too_long.status_code == 400
    assert too_long.json()["error"]["code"] == "context_length_exceeded"


def test_requests_are_logged_without_what_they_say(served, caplog, urls):
    with caplog.at_level(logging.INFO, logger="uvicorn.access"):
        served.post({"messages": ask("A secret question", urls[0])})
        served.post({"messages": ask("A secret question", "data:secret")})
    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert [line[-40:] for line in lines] == [
        '"POST /v1/chat/completions HTTP/1.1" 200'[-40:],
        '"POST /v1/chat/completions HTTP/1.1" 400'[-40:],
    ]
    assert "secret" not in caplog.text
    assert "base64" not in caplog.text


@pytest.mark.slow
def test_no_body_whatsoever_fails_the_server(served):
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies)
    def post(body):
        response = served.http.post(
            "/v1/chat/completions",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert response.status_code in (200, 400, 404)
        if response.status_code != 200:
            assert response.json()["error"]["message"]
        elif "text/event-stream" in response.headers["content-type"]:
            assert response.text.endswith("data: [DONE]\n\n")

    post()
    served.wait_until_idle()


def test_a_key_that_no_header_can_hold_is_refused(monkeypatch):
    monkeypatch.delenv("LLAVA_API_KEY", raising=False)
    assert find_key(None) is None
    assert find_key("abc") == "abc"
    for key in ("", "a b", "schlüssel", "a\n"):
        with pytest.raises(UserError, match="printable ASCII"):
            find_key(key)
    monkeypatch.setenv("LLAVA_API_KEY", "of-the-environment")
    assert find_key(None) == "of-the-environment"
    assert find_key("abc") == "abc"
    monkeypatch.setenv("LLAVA_API_KEY", "")
    with pytest.raises(UserError, match="is empty"):
        find_key(None)


def test_an_address_that_is_taken_or_none_is_refused():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{port}: .*in use"):
            listen("127.0.0.1", port)
    for host, other in (("127.0.0.1", 70_000), ("no.such.host.invalid", 0), ("a" * 100, 0)):
        with pytest.raises(UserError, match=f"cannot listen at {host}:{other}: "):
            listen(host, other)


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "llava.serve.api")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"needs uvicorn: pip install 'llava\[serve\]'"):
        api_server.run(argparse.Namespace())


COMMAND = """
import sys
from llava.options import CommandParser
from llava.serve import api_server
from llava.utils import exit_on_user_error

@exit_on_user_error
def main():
    parser = CommandParser(prog="llava serve")
    api_server.add_arguments(parser)
    api_server.run(parser.parse_args())

sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command_cleanly_and_frees_its_port(number):
    command = [sys.executable, "-c", COMMAND, "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "LLAVA_API_KEY": "secret"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"llava-shapes is served at (http://127\.0\.0\.1:(\d+))/v1\n", line)
        assert found, line + process.stderr.read()
        client = openai.OpenAI(base_url=f"{found[1]}/v1", api_key="secret", max_retries=0)
        stream = client.chat.completions.create(
            model=NAME, messages=ask(QUESTIONS[0], data_url("red", (64, 64))), stream=True
        )
        next(stream)
        process.send_signal(number)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "stop"
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == ""
    assert "Traceback" not in errors
    assert '"POST /v1/chat/completions HTTP/1.1" 200' in errors
    listen("127.0.0.1", int(found[2])).close()


@pytest.fixture
def picture_site(monkeypatch):
    """A server of one picture, which counts as public here; ``/slow`` takes as long as the test wants."""
    go_on = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow":
                go_on.wait(20)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PATHS[0].read_bytes())

        def log_message(self, *_):
            pass

    monkeypatch.setattr(public_web, "is_public", lambda address: True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", go_on
    go_on.set()
    server.shutdown()
    server.server_close()


def data_url_of(path):
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(url):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTIONS[1]}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}


def test_a_url_is_fetched_where_the_server_allows_it(assistant, picture_site):
    url, _ = picture_site
    with serving(assistant) as server:
        refused = server.post(about(f"{url}/a.png"))
        assert refused.status_code == 400 and "nothing is fetched" in refused.text
    with serving(assistant, allow_urls=True) as server:
        fetched, sent = server.post(about(f"{url}/a.png")), server.post(about(data_url_of(PATHS[0])))
        assert fetched.status_code == sent.status_code == 200
        assert fetched.json()["choices"] == sent.json()["choices"]
        wrong = server.post(about("file:///etc/passwd"))
        assert wrong.status_code == 400 and "or a URL of http or https" in wrong.text


def test_an_address_inside_is_not_fetched(assistant):
    with serving(assistant, allow_urls=True) as server:
        for url in (server.url, "http://169.254.169.254/latest/meta-data"):
            refused = server.post(about(url))
            assert refused.status_code == 400
            assert "is not a host with a public address" in refused.json()["error"]["message"]


def test_a_slow_picture_takes_no_place_of_another_request(assistant, picture_site):
    url, go_on = picture_site
    with serving(assistant, allow_urls=True, concurrency=1) as server, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(server.post, about(f"{url}/slow"))
        wait_for(lambda: server.completions.running + server.completions.waiting > 0)
        assert server.post(about(data_url_of(PATHS[0]))).status_code == 200
        assert not slow.done()
        go_on.set()
        assert slow.result().status_code == 200
