"""The console script: what it prints, what it refuses, and that it stays light until a model is needed."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava import __version__, ask
from llava.main import COMMANDS, main


class FakeAssistant:
    """Answers everything with the same words and remembers what it was asked."""

    def __init__(self) -> None:
        from llava.messages import Answer, Cost

        self.model = SimpleNamespace(config=SimpleNamespace(image_aspect_ratio="pad"))
        self.asked: list[tuple[Any, ...]] = []
        kept = np.zeros((4, 4), bool)
        kept[1, 1] = True
        cost = Cost(
            patches=16,
            visual_tokens=2,
            new_tokens=3,
            vision_ms=12.34567,
            reduction_ms=0.5,
            prefill_ms=20.0,
            decode_ms=31.6,
        )
        self.reply = Answer("A réd star.", cost, (torch.from_numpy(kept),), "stop")

    def answer(self, question: str, image: Image.Image | None, options: Any):
        self.asked.append((question, None if image is None else image.size, options))
        return self.reply


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> FakeAssistant:
    fake = FakeAssistant()
    monkeypatch.setattr(ask, "load_assistant", lambda _: fake)
    return fake


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (32, 16), (90, 90, 90)).save(path)
    return str(path)


def test_ask_prints_the_answer_and_one_line_of_cost(
    assistant: FakeAssistant, picture: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["ask", "--image", picture, "--max", "7", "--temp", "0.5", "What is it?"]) == 0
    ((question, size, options),) = assistant.asked
    assert (question, size) == ("What is it?", (32, 16))
    assert (options.max_new_tokens, options.temperature) == (7, 0.5)
    output = capsys.readouterr()
    assert output.out == (
        "A réd star.\n"
        "16 patches -> 2 visual tokens; "
        "vision 12 ms, reduction 0.5 ms, prefill 20 ms, decode 32 ms (3 tokens)\n"
    )
    assert output.err == ""


def test_a_question_without_an_image_is_answered_without_words_about_images(
    assistant: FakeAssistant, capsys: pytest.CaptureFixture[str]
):
    from dataclasses import replace

    cost = replace(assistant.reply.cost, patches=0, visual_tokens=0, vision_ms=0.0, reduction_ms=0.0)
    assistant.reply = replace(assistant.reply, cost=cost, kept=())
    assert main(["ask", "What is it?"]) == 0
    ((question, size, _),) = assistant.asked
    assert (question, size) == ("What is it?", None)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("A réd star.\nprefill 20 ms, decode 32 ms (3 tokens)\n", "")


def test_ask_prints_the_same_as_one_json_object(
    assistant: FakeAssistant, picture: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["ask", "--json", "--image", picture, "What is it?"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert json.loads(output) == {
        "answer": "A réd star.",
        "patches": 16,
        "visual_tokens": 2,
        "new_tokens": 3,
        "vision_ms": 12.346,
        "reduction_ms": 0.5,
        "prefill_ms": 20.0,
        "decode_ms": 31.6,
    }


@pytest.mark.parametrize("name", ["kept.png", "kept.JPG"])
def test_ask_writes_the_kept_patches(assistant: FakeAssistant, picture: str, tmp_path: Path, name: str):
    path = tmp_path / name
    assert main(["ask", "--image", picture, "--show-kept", str(path), "What?"]) == 0
    with Image.open(path) as drawn:
        assert drawn.size == (32, 16)
        gray = np.asarray(drawn.convert("L"))
    assert gray[14, 30] < 40  # dimmed
    assert gray[4, 12] > 70  # kept


@pytest.mark.usefixtures("assistant")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: question"),
        (["What?", "--show-kept", "kept.png"], "--show-kept draws on the image, and there is none"),
        (["--image", "PICTURE", "Wh\udcfft?"], r"'Wh\udcfft?' is not UTF-8"),
        (["--image", "PICTURE"], "the following arguments are required: question"),
        (["--image", "PICTURE", " "], "the question is empty"),
        (["--image", "nowhere.png", "What?"], "there is no image file nowhere.png"),
        (["--image", "FOLDER", "What?"], "is a folder"),
        (
            ["--image", "PICTURE", "--max-new-tokens", "0", "What?"],
            "max_new_tokens is 0; accepted: 1 or more",
        ),
        (["--image", "PICTURE", "--max-new-tokens", "x", "What?"], "invalid int value: 'x'"),
        (["--image", "PICTURE", "--temperature", "-1", "What?"], "temperature is -1.0; accepted: 0"),
        (["--image", "PICTURE", "--temperature", "nan", "What?"], "temperature is nan; accepted: 0"),
        (["--image", "PICTURE", "--show-kept", "nowhere/kept.png", "What?"], "there is no folder"),
        (["--image", "PICTURE", "--show-kept", "PICTURE", "What?"], "would overwrite"),
        (["--image", "PICTURE", "--show-kept", "kept.txt", "What?"], "must end in one of .png"),
        (["--image", "PICTURE", "--show-kept", "FOLDER", "What?"], "is a folder"),
        (["--image", "PICTURE", "--wrong", "What?"], "unrecognized arguments: --wrong"),
    ],
)
def test_ask_refuses_in_one_line_with_exit_code_2(
    arguments: list[str], sentence: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    places = {"PICTURE": picture, "FOLDER": str(tmp_path)}
    assert main(["ask", *(places.get(word, word) for word in arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert sentence in output.err


@pytest.mark.usefixtures("assistant")
def test_a_place_that_cannot_be_written_is_refused(
    picture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full(*_: Any, **__: Any):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["ask", "--image", picture, "--show-kept", str(tmp_path / "kept.png"), "What?"]) == 2
    assert capsys.readouterr().err.endswith("kept.png cannot be written: No space left on device\n")


def test_options_reach_the_assistant(picture: str, monkeypatch: pytest.MonkeyPatch):
    from llava.assistant import Assistant

    loaded: list[tuple[Any, ...]] = []

    def load(*args: Any, **options: Any) -> FakeAssistant:
        loaded.append((args, options))
        return FakeAssistant()

    monkeypatch.setattr(Assistant, "load", load)
    options = "--model-path a --model-base b --vision c --token TRIM:64 --dtype bf16 --device cpu --conv d"
    assert main(["ask", "--image", picture, *options.split(), "--load-4bit", "What?"]) == 0
    assert loaded == [
        (
            ("a",),
            {
                "model_base": "b",
                "vision_tower": "c",
                "token_reduction": "TRIM:64",
                "dtype": "bf16",
                "device": "cpu",
                "conv_mode": "d",
                "load_8bit": False,
                "load_4bit": True,
                "vllm": None,
                "compile_vision": False,
                "cuda_graphs": True,
            },
        )
    ]


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "ask one question, mostly about an image" in capsys.readouterr().err


def test_an_unknown_command_is_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["sing"]) == 2
    assert capsys.readouterr().err.startswith("error: argument command: invalid choice: 'sing'")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"llava {__version__}\n"


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"usage: llava {command}" in capsys.readouterr().out


def imported_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after running some code."""
    program = (
        f"import sys\n"
        f"try:\n    {code}\n"
        f"except SystemExit:\n    pass\n"
        f"print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in process.stderr.split()}


@pytest.mark.parametrize("code", ["import llava", "from llava.main import main; main(['--help'])"])
def test_the_package_and_its_help_stay_light(code: str):
    """Counted, not timed: these libraries are what would make `llava --help` slow."""
    assert not imported_by(code) & {"torch", "transformers", "numpy", "PIL", "requests"}


def test_the_help_of_a_command_needs_no_torch():
    assert not imported_by("from llava.main import main; main(['ask', '--help'])") & {"torch", "transformers"}


def test_json_of_an_answer_is_json_and_harmless_to_terminals(assistant, picture, capsys):
    from dataclasses import replace

    text = "\x1b[2J \x9b31m \u202e \x7f é"
    assistant.reply = replace(assistant.reply, text=text)
    assert main(["ask", "--image", picture, "--json", "What?"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["answer"] == text
    assert not set("\x1b\x9b\u202e\x7f") & set(printed)
