"""vLLM gives the answers of the transformers engine, whatever runs beside them; ``scripts/test_vllm.sh``."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from itertools import cycle
from multiprocessing import active_children
from threading import Thread

import pytest
import torch
from transformers import BitsAndBytesConfig

from llava.assistant import Assistant, bundled_checkpoint
from llava.engine.base import Generation
from llava.engine.vllm_engine import VllmOptions, load_with_vllm
from llava.errors import PromptTooLongError, UserError
from llava.eval.provenance import settings_of
from llava.messages import Answer, Failure, Request
from llava.model.placement import choose_placement
from playground.shapes.questions import ask, ask_description
from playground.shapes.world import HELD_OUT, Scene, stream

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]

OPTIONS = {"max_model_len": 640, "enforce_eager": True, "gpu_memory_utilization": 0.3}
FLAGS = [
    *("--engine", "vllm", "--device", "cpu"),
    *(flag for name, value in OPTIONS.items() for flag in ("--vllm-option", f"{name}={json.dumps(value)}")),
]
REDUCTIONS = ("none", "TRIM:-1", "TRIM:16", "TRIM:100", "TRIM:0.5", "Random:40", "Pool:25")
QUESTIONS = 100
FIRST_SEED = 7_000_000
IN_FLIGHT = 16
LARGEST_TIE = 1e-4  # of logits, where the engines were seen to differ by up to 6e-6
LONG = Generation(max_new_tokens=200, min_new_tokens=200)


@pytest.fixture(scope="module", autouse=True)
def _environment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAVA_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        yield


@pytest.fixture(scope="module")
def shapes():
    return Assistant.load(device="cpu")


@pytest.fixture(scope="module")
def fast(_environment):
    return Assistant.load(device="cpu", vllm=VllmOptions(more=OPTIONS))


def requests(count=QUESTIONS, **settings):
    """Questions about held-out scenes, every fourth one for a description, each reduced in its own way."""
    generation = Generation(max_new_tokens=64, **settings)
    made = []
    for number, reduction in zip(range(count), cycle(REDUCTIONS)):
        scene = Scene.from_seed(HELD_OUT[FIRST_SEED + number])
        asked = (ask_description if number % 4 == 0 else ask)(scene, stream(scene.seed, "words"))
        made.append(Request.ask(asked.text, scene.render(), token_reduction=reduction, generation=generation))
    return made


def is_idle(assistant):
    return not assistant.engine._vllm.has_unfinished_requests() and not assistant.engine._running


def gap(assistant, request, *texts):
    """Difference of the logits of the first tokens in which two answers to a request differ."""
    (job,) = assistant._begin([replace(request, generation=Generation(max_new_tokens=1))])
    prompt = assistant.engine._waiting[-1].embeddings
    assistant.router.cancel(job.engine_id)
    tokenizer, model = assistant.tokenizer, assistant.model
    first, second = (
        torch.tensor([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id])
        for text in texts
    )
    place = next(i for i, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    own = model.get_input_embeddings()(first[:place])
    with torch.no_grad():
        logits = model(inputs_embeds=torch.cat([prompt, own])[None]).logits[0, -1]
    return float((logits[first[place]] - logits[second[place]]).abs())


def test_answers_are_those_of_transformers_with_sixteen_in_flight(shapes, fast, monkeypatch):
    expected = list(shapes.answer_all(requests(), IN_FLIGHT))
    in_flight, step = [], fast.engine.step

    def count():
        events = step()
        in_flight.append(len(fast.engine._running) + len({event.id for event in events if event.finished}))
        return events

    monkeypatch.setattr(fast.engine, "step", count)
    answers = list(fast.answer_all(requests(), IN_FLIGHT))
    assert all(isinstance(answer, Answer) for answer in (*answers, *expected))
    assert max(in_flight) == IN_FLIGHT
    assert len({answer.cost.visual_tokens for answer in answers}) > len(REDUCTIONS)
    ties = {}  # texts that differ, and by how little their first other token is likelier
    for request, one, other in zip(requests(), expected, answers, strict=True):
        assert one.cost.visual_tokens == other.cost.visual_tokens
        if one.text == other.text:
            assert (one.finish_reason, one.cost.new_tokens) == (other.finish_reason, other.cost.new_tokens)
        else:
            ties[one.text, other.text] = gap(shapes, request, one.text, other.text)
    assert len(ties) <= QUESTIONS // 100, ties
    assert all(tie < LARGEST_TIE for tie in ties.values()), ties
    assert is_idle(fast)


def test_an_answer_comes_piece_by_piece_beside_others(shapes, fast):
    described = requests(1)[0]
    whole = shapes.answer("What do you see in the image?", described.images[0])
    streams = [fast.stream(Request.ask("What do you see in the image?", *described.images)) for _ in "ab"]
    pieces = [[next(stream)] for stream in streams]
    for own, stream_ in zip(pieces, streams, strict=True):
        own += list(stream_)
    assert len(pieces[0]) > 3
    assert ["".join(own) for own in pieces] == [whole.text] * 2


@pytest.mark.parametrize("limit", [1, 5, 64])
def test_an_answer_ends_where_it_does_in_transformers(shapes, fast, limit):
    scene = requests(1)[0].images[0]
    whole = shapes.answer("Describe the picture.", scene).text
    stop = whole.split()[3]
    for settings in ({}, {"stop": (stop,)}, {"stop": "</s>"}, {"min_new_tokens": limit}):
        generation = Generation(max_new_tokens=limit, **settings)
        one, other = (model.answer("Describe the picture.", scene, generation) for model in (shapes, fast))
        assert (one.text, one.finish_reason, one.cost.new_tokens) == (
            *(other.text, other.finish_reason, other.cost.new_tokens),
        )
    assert is_idle(fast)


@pytest.mark.parametrize("others", [0, 2])
def test_an_answer_that_is_cancelled_frees_its_place(fast, others):
    scene = requests(1)[0].images[0]
    streams = [fast.stream(Request.ask("Describe.", scene, generation=LONG)) for _ in range(others + 1)]
    for stream_ in streams:
        next(stream_)
    assert len(fast.engine._running) == others + 1
    streams[0].close()
    assert len(fast.engine._running) == others
    assert fast.engine._vllm.get_num_unfinished_requests() == others
    for stream_ in streams[1:]:
        assert sum(map(len, stream_)) > 0
    assert is_idle(fast)


def test_a_sampled_answer_depends_on_its_own_seed_only(fast):
    scene = requests(1)[0].images[0]

    def ask_with(seed):
        return Request.ask(
            "Describe.", scene, generation=Generation(60, temperature=2.0, top_p=0.9, seed=seed)
        )

    alone = [next(fast.answer_all([ask_with(seed)])).text for seed in (1, 2)]
    assert alone[0] != alone[1]
    together = fast.answer_all([ask_with(1), *requests(3), ask_with(2)])
    assert [answer.text for answer in together][::4] == alone
    torch.manual_seed(3)
    first = fast.answer("Describe.", scene, Generation(60, temperature=2.0)).text
    torch.manual_seed(3)
    assert fast.answer("Describe.", scene, Generation(60, temperature=2.0)).text == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams is 2; vLLM has no beam search"),
        ({"repetition_penalty": 1.5}, "repetition_penalty is 1.5; vLLM has none for embedded prompts"),
        ({"temperature": 2.5}, "temperature is 2.5; vLLM accepts 2 or less"),
    ],
)
def test_what_vllm_does_otherwise_is_refused(fast, settings, message):
    bad = replace(requests(1)[0], generation=Generation(**settings))
    good = requests(2)[1]
    results = list(fast.answer_all([bad, good]))
    assert isinstance(results[0], Failure) and isinstance(results[1], Answer)
    with pytest.raises(UserError, match=message):
        raise results[0].error


def test_a_prompt_that_is_too_long_for_vllm_is_refused(fast):
    scene = requests(1)[0].images[0]
    with pytest.raises(PromptTooLongError, match="this model reads at most 639"):
        fast.answer("Is it red? " * 200, scene)
    answer = fast.answer("Describe. " * 50, scene, Generation(max_new_tokens=500, min_new_tokens=500))
    assert answer.finish_reason == "length"
    assert answer.cost.new_tokens < 500


def test_answers_of_two_engines_are_told_apart(shapes, fast):
    one, other = settings_of(shapes), settings_of(fast)
    assert one["engine"] == "transformers"
    assert re.fullmatch(r"vllm \d+\.\d+\.\d+.*", other["engine"])
    assert {"language_model", "more"} <= other.keys()


def error_of(act):
    """Return what a function raises, and do not wait for ever if it does not."""
    errors = []

    def run():
        try:
            act()
        except Exception as error:  # noqa: BLE001 - of whatever kind vLLM has
            errors.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=60)
    (error,) = errors
    return str(error)


def test_the_death_of_vllm_is_an_error_and_not_a_wait(fast):
    """And the memory is free for those that start their own."""
    pieces = fast.stream(Request.ask("Describe.", generation=LONG))
    next(pieces)
    (process,) = active_children()
    process.kill()
    for act in (lambda: list(pieces), lambda: fast.answer("Describe."), lambda: fast.answer("Describe.")):
        assert re.search("EngineCore|vLLM's process has ended", error_of(act))


def test_a_server_answers_and_ends_cleanly(shapes):
    request = requests(2)[1]
    expected = shapes.answer(request.messages[0].text, request.images[0]).text
    buffer = BytesIO()
    request.images[0].save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    image = {"type": "image_url", "image_url": {"url": url}}
    content = [image, {"type": "text", "text": request.messages[0].text}]
    body = {"model": "llava-shapes", "messages": [{"role": "user", "content": content}]}
    command = [sys.executable, "-m", "llava.main", "serve", "--port", "0", *FLAGS]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, server.communicate(timeout=60)[1]
        post = urllib.request.Request(
            f"{found[0]}/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(post, timeout=120) as response:
            reply = json.load(response)
        os.killpg(server.pid, signal.SIGINT)  # as a terminal's Ctrl-C, to vLLM's processes too
        out, errors = server.communicate(timeout=60)
    finally:
        server.kill()
    assert reply["choices"][0]["message"]["content"] == expected
    assert reply["usage"]["prompt_tokens_details"]["visual_tokens"] > 0
    assert (server.returncode, out) == (0, "")
    assert "Traceback" not in errors


def test_a_benchmark_has_the_score_of_transformers(miniatures, tmp_path):
    results = []
    for name, flags in (("transformers", ["--device", "cpu"]), ("vllm", FLAGS)):
        file = tmp_path / f"{name}.txt"
        own = ["--data", str(miniatures), "--id", name, "--results-file", str(file)]
        command = [sys.executable, "-m", "llava.eval", "pope", *own, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / name / "pope.json").read_text()))
    one, other = results
    assert one["score"] == other["score"]
    assert one["marks"] == other["marks"]
    assert one["settings"]["engine"] != other["settings"]["engine"]


def test_what_cannot_be_loaded_is_one_sentence():
    with pytest.raises(UserError, match="vLLM did not start: .*no_such_option"):
        Assistant.load(device="cpu", vllm=VllmOptions(more={"no_such_option": 1}))
    placement = replace(choose_placement("cpu", None), quantization=BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(UserError, match="vLLM has its own quantization"):
        load_with_vllm(VllmOptions(), str(bundled_checkpoint()), None, placement)
