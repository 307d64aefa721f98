"""The model worker with the bundled model: answers over real sockets, alone and behind a controller."""

import base64
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from PIL import Image

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.errors import UserError
from llava.messages import Message, Request
from llava.mm_utils import tokenizer_image_token
from llava.serve import model_worker as module
from llava.serve import test_message
from llava.serve.model_worker import HeartBeat, ModelWorker, create_app, read_request
from llava.serve.protocol import ErrorCode, GenerateRequest, read_chunks
from tests.serve.test_controller import controlling, nobody, post, serving

NAME = "llava-shapes"
ENDLESS = {"temperature": 100.0, "max_new_tokens": 1024, "stop": None}
QUESTION = "What is in the image?"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(device="cpu")


@pytest.fixture
def image(pictures: dict[str, Image.Image]) -> Image.Image:
    return pictures["img0.png"]


@pytest.fixture(scope="module")
def address(assistant: Assistant) -> Iterator[str]:
    with serving(create_app(ModelWorker(assistant, NAME))) as at:
        yield at


def encode(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def body(assistant: Assistant, image: Image.Image) -> dict[str, Any]:
    """What a client sends, greedy."""
    return {
        "model": NAME,
        "prompt": assistant.render(Request.ask(QUESTION, image)),
        "images": [encode(image)],
        "temperature": 0,
        "max_new_tokens": 40,
        "stop": "</s>",
    }


def ask(address: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask as clients made for LLaVA do."""
    response = requests.post(
        f"{address}/worker_generate_stream",
        headers={"User-Agent": "LLaVA Client"},
        json=body,
        stream=True,
        timeout=60,
    )
    return [
        json.loads(chunk) for chunk in response.iter_lines(decode_unicode=False, delimiter=b"\0") if chunk
    ]


def test_a_client_made_for_llava_gets_the_assistants_answer(assistant, address, body, image):
    expected = assistant.answer(QUESTION, image, Generation(max_new_tokens=40)).text
    assert expected
    chunks = ask(address, body)
    assert {chunk["error_code"] for chunk in chunks} == {0}
    texts = [chunk["text"] for chunk in chunks]
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert texts[0].startswith(body["prompt"])
    assert texts[-1] == f"{body['prompt']}{expected}"


def test_every_chunk_is_json_and_a_zero_byte(address, body):
    data = requests.post(f"{address}/worker_generate_stream", json=body, timeout=60).content
    *chunks, rest = data.split(b"\0")
    assert rest == b""
    assert all(chunk == json.dumps(json.loads(chunk)).encode() for chunk in chunks)
    assert {tuple(json.loads(chunk)) for chunk in chunks} == {("text", "error_code")}


def test_an_answer_through_a_controller_is_the_same(assistant, address, body):
    direct = ask(address, body)
    with controlling(address, model=NAME) as controller:
        assert ask(controller, body) == direct


def test_the_status_is_llavas(address):
    assert post(address, "worker_get_status") == {"model_names": [NAME], "speed": 1, "queue_length": 0}


def test_a_prompt_of_several_turns_and_images_is_answered_as_the_assistant_does(assistant, address, body):
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    messages = (
        Message("user", "What is this?", (images[0],)),
        Message("assistant", "a red square"),
        Message("user", "And this <image> one?", (images[1],)),
    )
    request = Request(messages, generation=Generation(max_new_tokens=40))
    (expected,) = assistant.answer_all([request])
    prompt = assistant.render(request)
    chunks = ask(address, {**body, "prompt": prompt, "images": list(map(encode, images))})
    assert chunks[-1] == {"text": prompt + expected.text, "error_code": 0}


def test_a_prompt_without_an_image_is_answered(assistant, address, body):
    request = Request.ask("Hello", generation=Generation(max_new_tokens=40))
    (expected,) = assistant.answer_all([request])
    prompt = assistant.render(request)
    for images in ([], None):
        chunks = ask(address, {**body, "prompt": prompt, "images": images})
        assert chunks[-1] == {"text": prompt + expected.text, "error_code": 0}


def test_the_reducer_gets_the_newest_question_of_a_rendered_prompt(assistant, image):
    request = Request.ask("Where is the circle?", image, generation=Generation(max_new_tokens=3))
    (expected,) = assistant.answer_all([request])
    (answer,) = assistant.answer_all(
        [Request.ask("", image, prompt=assistant.render(request), generation=request.generation)]
    )
    assert torch.equal(answer.kept[0], expected.kept[0])
    (other,) = assistant.answer_all([Request.ask("a", image, generation=request.generation)])
    assert not torch.equal(other.kept[0], expected.kept[0])
    words = Request.ask("", image, prompt=assistant.render(request), clip_text="a", token_reduction="TRIM:9")
    (few,) = assistant.answer_all([words])
    assert few.cost.visual_tokens == 10


def test_a_rendered_prompt_has_as_many_placeholders_as_images(assistant, image):
    with pytest.raises(UserError, match="2 <image> placeholders in the prompt, 1 images"):
        assistant.render(Request.ask("", image, prompt="USER: <image> <image> ASSISTANT:"))


def test_the_stop_text_ends_the_answer_and_is_left_out(address, body):
    whole = ask(address, body)[-1]["text"].removeprefix(body["prompt"])
    stop = whole[len(whole) // 2 :][:3]
    chunks = ask(address, {**body, "stop": stop})
    assert chunks[-1]["text"] == body["prompt"] + whole[: whole.index(stop)].rstrip()
    for stop in (None, ""):
        assert ask(address, {**body, "stop": stop})[-1]["text"] == body["prompt"] + whole


def test_sampling_begins_above_a_temperature_of_0_001(body):
    def generation(**settings: Any) -> Generation:
        asked = GenerateRequest.parse({**body, "images": [], "prompt": "Hello", **settings})
        return read_request(asked).generation

    for settings in ({"temperature": 0.001}, {"temperature": 0}, {"temperature": 0.7, "top_p": 0}):
        assert not generation(**settings).samples
    assert generation(temperature=0.0011, top_p=0.5).top_p == 0.5
    assert generation(temperature=0.0011).samples
    assert generation(max_new_tokens=5000).max_new_tokens == 1024


@pytest.fixture
def context(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def limit(length: int) -> None:
        monkeypatch.setattr(assistant.model.config, "tokenizer_model_max_length", length)

    return limit


def test_new_tokens_are_limited_by_the_visual_tokens_that_are_really_there(assistant, address, body, context):
    torch.manual_seed(0)  # the answers are drawn
    (answer,) = assistant.answer_all([read_request(GenerateRequest.parse({**body, "max_new_tokens": 1}))])
    side = assistant.encoder.tower.num_patches_per_side
    assert answer.cost.visual_tokens < side * side
    words = len(tokenizer_image_token(body["prompt"], assistant.tokenizer)) - 1
    context(words + answer.cost.visual_tokens + 4)
    request = read_request(GenerateRequest.parse({**body, **ENDLESS, "max_new_tokens": 200}))
    (answer,) = assistant.answer_all([request])
    assert (answer.cost.new_tokens, answer.finish_reason) == (4, "length")


def test_a_prompt_that_leaves_no_room_is_answered_with_a_sentence(address, body, context):
    for length in (60, 5):
        context(length)
        (chunk,) = ask(address, body)
        assert chunk["error_code"] == 0
        assert chunk["text"].startswith(f"{body['prompt']} (the prompt has ")
        assert f"this model reads at most {length - 1}" in chunk["text"]
    context(2048)
    (chunk,) = ask(address, {**body, "max_new_tokens": 0})
    assert chunk["text"] == f"{body['prompt']} (0 new tokens are asked for)"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": []}, "1 <image> placeholders in the prompt, 0 images given"),
        ({"images": ["aGk=", "aGk="]}, "image 1 is not an image"),
        ({"images": ["###"]}, "image 1 is not base64"),
        ({"images": ["aGk="] * 9}, "9 images; at most 8"),
    ],
)
def test_what_is_wrong_with_a_request_is_told_in_one_chunk(address, body, change, words):
    (chunk,) = ask(address, {**body, **change})
    assert chunk["error_code"] == ErrorCode.WORKER
    assert words in chunk["text"]
    assert post(address, "worker_get_status")["queue_length"] == 0


@pytest.mark.parametrize(
    ("data", "status"), [(b"{", 400), (b"[]", 400), (b"{}", 422), (b'{"prompt": 1}', 422)]
)
def test_a_body_that_makes_no_sense_is_refused_with_a_sentence(address, data, status):
    response = requests.post(f"{address}/worker_generate_stream", data=data, timeout=20)
    assert response.status_code == status
    assert response.json()["detail"]


def test_what_the_engine_raises_is_told_and_the_next_request_is_answered(
    assistant, address, body, monkeypatch
):
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    assistant.features.clear()
    with monkeypatch.context() as broken:
        broken.setattr(assistant.encoder.tower, "look", fail)
        (chunk,) = ask(address, body)
    assert chunk == {"text": "RuntimeError: CUDA out of memory", "error_code": 1}
    assert ask(address, body)[-1]["error_code"] == 0


def test_requests_above_the_limit_wait_and_all_are_answered(assistant, body):
    worker = ModelWorker(assistant, NAME, concurrency=2)
    longest = []
    worker.on_change = lambda: longest.append(worker.queue_length)
    with serving(create_app(worker)) as at, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [at] * 6, [body] * 6))
    assert len({json.dumps(answer[-1]) for answer in answers}) == 1
    assert answers[0][-1]["error_code"] == 0
    assert max(longest) == 6
    assert worker.queue_length == 0


def test_a_client_that_goes_away_frees_its_slot(assistant, body):
    worker = ModelWorker(assistant, NAME, concurrency=1)
    with serving(create_app(worker)) as at, controlling(at, model=NAME) as controller:
        for address in (at, controller):
            response = requests.post(
                f"{address}/worker_generate_stream", json={**body, **ENDLESS}, stream=True, timeout=20
            )
            pieces = response.iter_content(None)
            next(pieces)
            assert worker.queue_length == 1
            response.close()
            wait_until(lambda: worker.queue_length == 0)
            assert ask(at, body)[-1]["error_code"] == 0


def test_a_client_that_waits_and_goes_away_is_not_answered(assistant, body):
    worker = ModelWorker(assistant, NAME, concurrency=1)
    with serving(create_app(worker)) as at:
        url = f"{at}/worker_generate_stream"
        first = requests.post(url, json={**body, **ENDLESS}, stream=True, timeout=20)
        second = requests.post(url, json={**body, **ENDLESS}, stream=True, timeout=20)
        wait_until(lambda: worker.queue_length == 2)
        second.close()
        wait_until(lambda: worker.queue_length == 1)
        first.close()
        wait_until(lambda: worker.queue_length == 0)


def test_a_worker_that_is_stopped_tells_its_running_answers(assistant, body):
    with serving(create_app(ModelWorker(assistant, NAME))) as at:
        response = requests.post(
            f"{at}/worker_generate_stream", json={**body, **ENDLESS}, stream=True, timeout=20
        )
        chunks = read_chunks(response.iter_content(None))
        assert next(chunks).error_code == 0
    *_, last = chunks
    assert last.error_code == 1
    assert last.text == "the server was stopped before the answer had ended"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds
        time.sleep(0.05)


def models(controller: str) -> list[str]:
    try:
        return post(controller, "list_models")["models"]
    except requests.RequestException:
        return []


def test_a_worker_registers_and_comes_back_after_its_controller_has_ended(assistant, caplog):
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    controller = f"http://127.0.0.1:{port}"
    worker = ModelWorker(assistant, NAME)
    heart_beat = HeartBeat(controller, "http://localhost:1", worker.status, interval=0.1, retry=0.1)
    with serving(create_app(worker, heart_beat)):
        for _ in range(2):
            time.sleep(0.4)
            with controlling(port=port) as at:
                wait_until(lambda at=at: models(at) == [NAME])
    troubles = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len([record for record in troubles if "does not answer" in record.message]) in (2, 3)


def test_another_model_at_the_same_address_takes_the_place_of_the_first(assistant):
    with controlling() as controller:
        for name in (NAME, "another"):
            worker = ModelWorker(assistant, name)
            heart_beat = HeartBeat(controller, "http://localhost:1", worker.status, interval=60)
            with serving(create_app(worker, heart_beat)):
                wait_until(lambda name=name: models(controller) == [name], seconds=10)


def test_a_worker_beats_when_its_queue_changes(assistant, body):
    worker = ModelWorker(assistant, NAME)
    with controlling() as controller:
        heart_beat = HeartBeat(controller, "http://localhost:1", worker.status, interval=60)
        with serving(create_app(worker, heart_beat)) as at:
            wait_until(lambda: models(controller) == [NAME])
            for _ in range(3):
                post(controller, "get_worker_address", {"model": NAME})
            assert post(controller, "worker_get_status")["queue_length"] == 3
            ask(at, body)
            wait_until(lambda: post(controller, "worker_get_status")["queue_length"] == 0)


def test_a_refusal_of_the_controller_is_logged_once(assistant, caplog):
    worker = ModelWorker(assistant, NAME)
    with controlling(key="secret") as controller:
        lost = HeartBeat(controller, "http://localhost:1", worker.status, interval=0.1, retry=0.1)
        with serving(create_app(worker, lost)):
            wait_until(lambda: "with its --key only" in caplog.text)
            time.sleep(0.4)
        assert caplog.text.count("with its --key only") == 1
        assert models(controller) == []
        known = HeartBeat(controller, "http://localhost:1", worker.status, key="secret")
        with serving(create_app(worker, known)):
            wait_until(lambda: models(controller) == [NAME])


def test_test_message_prints_the_answer(address, capsys):
    with controlling(address, model=NAME) as controller:
        arguments = ["--controller-address", controller, "--message", "Hello there"]
        assert test_message.main(arguments) == 0
        assert capsys.readouterr().out.strip()
        assert test_message.main([*arguments, "--model-name", "other"]) == 2
        assert "no worker for 'other'; served: llava-shapes" in capsys.readouterr().err
    assert test_message.main(["--worker-address", address, "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()
    assert test_message.main(["--worker-address", nobody()]) == 2
    assert "does not answer" in capsys.readouterr().err
    with controlling() as empty:
        assert test_message.main(["--worker-address", empty, "--model-name", "x"]) == 2
        assert "error code 2" in capsys.readouterr().err


def test_no_image_is_logged(address, body, caplog):
    caplog.set_level(logging.DEBUG)
    ask(address, body)
    ask(address, {**body, "images": [body["images"][0][:-40]]})
    assert body["images"][0][100:140] not in caplog.text


def test_the_options_are_llavas_and_those_of_every_command():
    options = module.build_parser().parse_args([])
    assert (options.host, options.port, options.limit_model_concurrency) == ("127.0.0.1", 21002, 5)
    assert options.controller_address == "http://localhost:21001"
    given = (
        "--host 0.0.0.0 --port 1 --worker-address http://localhost:1 --controller-address http://localhost:2 "
        "--model-path a --model-base b --model-name c --device cpu --multi-modal --limit-model-concurrency 2 "
        "--stream-interval 2 --no-register --load-8bit --load-4bit --use-flash-attn --key k "
        "--token-reduction none --vision-tower d --dtype float32 --conv-mode v1"
    )
    options = module.build_parser().parse_args(given.split())
    assert (options.model_name, options.no_register, options.token_reduction) == ("c", True, "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model-path", "/nowhere/model", "--port", "0"], "/nowhere/model"),
        (["--limit-model-concurrency", "0"], "1 or more"),
        (["--port", "70000"], "'70000' is not a valid port; accepted: 0 to 65535"),
        (["--controller-address", "localhost:21001"], "an address such as"),
        (["--host", "203.0.113.7"], "203.0.113.7"),
        (["--token-reduction", "TRIM:0", "--port", "0"], "TRIM"),
    ],
)
def test_a_wrong_command_line_is_a_sentence(arguments, words, capsys):
    assert module.main(["--device", "cpu", *arguments]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        return unused.getsockname()[1]


def start(module_name: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"llava.serve.{module_name}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def start_worker(controller: str, port: int) -> subprocess.Popen[str]:
    return start("model_worker", "--controller-address", controller, "--port", str(port), "--device", "cpu")


@contextmanager
def asking(controller: str, body: dict[str, Any], clients: int) -> Iterator[list[tuple[float, Any]]]:
    """Ask again and again from several threads; yields when each answer ended, and its chunks."""
    found: list[tuple[float, Any]] = []
    is_over = threading.Event()

    def ask_on() -> None:
        while not is_over.is_set():
            chunks = ask(controller, body)
            found.append((time.monotonic(), chunks))

    with ThreadPoolExecutor(clients) as pool:
        askers = [pool.submit(ask_on) for _ in range(clients)]
        try:
            yield found
        finally:
            is_over.set()
    for asker in askers:
        asker.result()


def speed(controller: str) -> int:
    return post(controller, "worker_get_status")["speed"]


@pytest.mark.slow
def test_a_worker_that_is_killed_under_load_loses_no_answer_and_returns(assistant, body):
    """Every request gets one complete answer or is told; later ones go to the other worker."""
    asked = GenerateRequest.parse(body)
    (answer,) = assistant.answer_all([read_request(asked)])
    ports = [free_port(), free_port()]
    with controlling(patience=5) as controller:
        processes = [start_worker(controller, port) for port in ports]
        try:
            wait_until(lambda: speed(controller) == 2, 120)
            long = {**body, **ENDLESS, "max_new_tokens": 200}
            with asking(controller, body, 6) as found, asking(controller, long, 4) as found_long:
                time.sleep(4)
                processes[0].kill()
                killed = time.monotonic()
                wait_until(lambda: speed(controller) == 1, 31)
                time.sleep(4)
                processes.append(start_worker(controller, ports[0]))
                wait_until(lambda: speed(controller) == 2, 120)
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    told = 0
    for ended, (*earlier, last) in found + found_long:
        assert all(chunk["error_code"] == 0 for chunk in earlier)
        if last["error_code"]:
            told += 1
            assert last["error_code"] == ErrorCode.WORKER_TIMEOUT
            assert f":{ports[0]} was lost" in last["text"]
            assert killed <= ended < killed + 15
    assert told <= 10  # those that were running there
    complete = [last["text"] for _, (*_, last) in found if last["error_code"] == 0]
    assert set(complete) == {asked.prompt + answer.text}
    assert sum(ended > killed + 1 for ended, _ in found) > 6


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_worker_and_frees_its_port(number, body):
    port = free_port()
    process = start_worker(nobody(), port)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_listening(address), 120)
        response = requests.post(
            f"{address}/worker_generate_stream", json={**body, **ENDLESS}, stream=True, timeout=60
        )
        chunks = read_chunks(response.iter_content(None))
        next(chunks)
        process.send_signal(number)
        *_, last = chunks
        assert "was stopped" in last.text
        _, error = process.communicate(timeout=10)
        assert process.returncode in (130, -number)
        assert "Traceback" not in error
        socket.create_server(("127.0.0.1", port)).close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_three_programs_answer_and_end(body, capsys):
    port = free_port()
    controller = f"http://127.0.0.1:{port}"
    processes = [start("controller", "--port", str(port)), start_worker(controller, free_port())]
    try:
        wait_until(lambda: models(controller) == [NAME], 120)
        assert ask(controller, body)[-1]["error_code"] == 0
        assert test_message.main(["--controller-address", controller]) == 0
        assert capsys.readouterr().out.strip()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        errors = [process.communicate(timeout=15)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    socket.create_server(("127.0.0.1", port)).close()
    assert "Traceback" not in "".join(errors)
    assert "HTTP Request" not in errors[0]
    assert "registered http://localhost:" in errors[0]


def is_listening(address: str) -> bool:
    try:
        return bool(post(address, "worker_get_status"))
    except requests.RequestException:
        return False
