"""What runs the language model, as command lines say it."""

import importlib.util
from types import SimpleNamespace

import pytest

from llava.assistant import Assistant
from llava.engine import vllm_engine
from llava.engine.vllm_engine import VllmOptions
from llava.errors import UserError
from llava.options import (
    CommandParser,
    add_engine_options,
    port,
    port_or_any,
    read_generation,
    read_vllm_options,
    utf8,
)


def read(*flags):
    parser = CommandParser()
    add_engine_options(parser)
    return read_vllm_options(parser.parse_args(flags))


def test_transformers_runs_it_unless_vllm_is_asked_for():
    assert read() is read("--engine", "transformers") is None
    assert read("--engine", "vllm") == VllmOptions(1, {})


def test_options_of_vllm_have_values_of_json_or_are_texts():
    flags = [
        *("max_model_len=4096", "--enforce-eager=true", "quantization=fp8", "cudagraph_capture_sizes=[1, 2]"),
        *("gpu_memory_utilization=0.5", "reasoning_parser=", "served_model_name=a=b"),
    ]
    more = [flag for option in flags for flag in (f"--vllm-option={option}",)]
    options = read("--engine", "vllm", "--tensor-parallel-size", "2", *more)
    assert options == VllmOptions(
        2,
        {
            **{"max_model_len": 4096, "enforce_eager": True, "quantization": "fp8"},
            **{"cudagraph_capture_sizes": [1, 2], "gpu_memory_utilization": 0.5},
            **{"reasoning_parser": "", "served_model_name": "a=b"},
        },
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--engine", "sglang"), "invalid choice"),
        (("--engine", "vllm", "--tensor-parallel-size", "0"), "accepted: 1 or more"),
        (("--engine", "vllm", "--vllm-option", "max_model_len"), "accepted: NAME=VALUE"),
        (("--engine", "vllm", "--vllm-option", "=3"), "accepted: NAME=VALUE"),
        (("--tensor-parallel-size", "2"), "go with --engine vllm"),
        (("--vllm-option", "max_model_len=3"), "go with --engine vllm"),
    ],
)
def test_what_makes_no_sense_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        read(*flags)


def test_without_vllm_a_sentence_says_how_to_get_it(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: None if name == "vllm" else find(name))
    with pytest.raises(UserError, match=r"needs vLLM, .*: pip install 'llava\[vllm\]'"):
        Assistant.load(device="cpu", vllm=VllmOptions())


@pytest.mark.parametrize(("kind", "least"), [(port, 1), (port_or_any, 0)])
def test_ports_are_those_that_there_are(kind, least):
    parser = CommandParser()
    parser.add_argument("--port", type=kind)
    assert [parser.parse_args(["--port", str(one)]).port for one in (least, 65535)] == [least, 65535]
    for wrong in (str(least - 1), "65536", "http", "1.5", ""):
        with pytest.raises(UserError, match=f"'{wrong}' is not a valid port; accepted: {least} to 65535"):
            parser.parse_args(["--port", wrong])


@pytest.mark.parametrize("written", ["Was ist das für ein Stern? 👍🏽", ""])
def test_texts_are_utf8_in_every_locale(written):
    assert utf8(written) == written
    assert utf8(written.encode().decode("ascii", "surrogateescape")) == written  # as LC_ALL=C hands it over


@pytest.mark.parametrize("written", ["Wh\udcfft", "\ud83d"])
def test_a_text_that_is_not_utf8_is_refused(written):
    parser = CommandParser()
    parser.add_argument("question", type=utf8)
    with pytest.raises(UserError, match="argument question: 'W?h?.*' is not UTF-8"):
        parser.parse_args([written])


def test_top_p_counts_only_where_tokens_are_drawn():
    def top_p(**options):
        return read_generation(SimpleNamespace(**options)).top_p

    assert top_p(temperature=0.0, top_p=0.0) is top_p(top_p=0.0) is None
    assert top_p(temperature=0.2, top_p=0.7) == 0.7
    with pytest.raises(UserError, match="top_p is 0.0; accepted: above 0, up to 1"):
        top_p(temperature=0.2, top_p=0.0)
