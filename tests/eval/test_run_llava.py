"""LLaVA's `eval_model(args)` and its command line, as its documentation uses them."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava.engine.base import Generation
from llava.eval import run_llava
from llava.messages import Message, Request, read_image


class FakeAssistant:
    def __init__(self) -> None:
        self.asked: list[tuple[Message, Generation]] = []

    def answer_all(self, requests: Sequence[Request]) -> list[SimpleNamespace]:
        ((message,),) = (request.messages for request in requests)
        self.asked.append((message, requests[0].generation))
        return [SimpleNamespace(text="A star.")]


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> FakeAssistant:
    fake = FakeAssistant()
    monkeypatch.setattr(run_llava, "load_assistant", lambda _: fake)
    return fake


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{side}.png") for side in (4, 6)]
    for path, side in zip(paths, (4, 6), strict=True):
        Image.new("RGB", (side, side)).save(path)
    return paths


def documented_arguments(**changes: Any) -> Any:
    """The object of LLaVA's README."""
    return type(
        "Args",
        (),
        {
            "model_path": "somewhere/llava-v1.5-7b",
            "model_base": None,
            "model_name": "llava-v1.5-7b",
            "query": "What is it?",
            "conv_mode": None,
            "image_file": "",
            "sep": ",",
            "temperature": 0,
            "top_p": None,
            "num_beams": 1,
            "max_new_tokens": 512,
            **changes,
        },
    )()


def test_the_documented_object_is_enough(
    assistant: FakeAssistant, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    run_llava.eval_model(documented_arguments(image_file=pictures[0]))
    ((question, options),) = assistant.asked
    assert question.text == "What is it?"
    assert [read_image(image).size for image in question.images] == [(4, 4)]
    assert (options.temperature, options.top_p, options.num_beams, options.max_new_tokens) == (
        0,
        None,
        1,
        512,
    )
    assert capsys.readouterr().out == "A star.\n"


def test_several_pictures_and_their_places(assistant: FakeAssistant, pictures: list[str]):
    query = "<image-placeholder> and <image-placeholder>: the same?"
    run_llava.eval_model(documented_arguments(image_file=";".join(pictures), sep=";", query=query))
    ((question, _),) = assistant.asked
    assert question.text == "<image> and <image>: the same?"
    assert [read_image(image).size for image in question.images] == [(4, 4), (6, 6)]


def test_blanks_around_names_are_no_part_of_them(assistant: FakeAssistant, pictures: list[str]):
    run_llava.eval_model(documented_arguments(image_file=" , ".join(pictures)))
    ((question, _),) = assistant.asked
    assert [read_image(image).size for image in question.images] == [(4, 4), (6, 6)]


def test_a_question_needs_no_image(assistant: FakeAssistant, capsys: pytest.CaptureFixture[str]):
    assert run_llava.main(["--query", "What?"]) == 0
    ((question, _),) = assistant.asked
    assert (question.text, question.images) == ("What?", ())
    assert (capsys.readouterr().out, capsys.readouterr().err) == ("A star.\n", "")


def test_the_command_line_has_llavas_names_and_defaults(assistant: FakeAssistant, pictures: list[str]):
    arguments = ["--model-path", "m", "--image-file", pictures[0], "--query", "What?"]
    assert run_llava.main(arguments) == 0
    assert (
        run_llava.main([*arguments, "--top_p", "0.5", "--num_b", "2", "--max_new", "3", "--temp", "1"]) == 0
    )
    first, second = (options for _, options in assistant.asked)
    assert (first.temperature, first.top_p, first.num_beams, first.max_new_tokens) == (0.2, None, 1, 512)
    assert (second.temperature, second.top_p, second.num_beams, second.max_new_tokens) == (1.0, 0.5, 2, 3)


@pytest.mark.usefixtures("assistant")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--image-file", "PICTURE"], "required: --query"),
        (
            ["--query", "What?", "--image-file", "PICTURE,"],
            "names joined by ',', none of them empty",
        ),
        (["--query", "What?", "--image-file", ""], "--image-file is ''; expected names"),
        (["--query", "Wh\udcfft?"], r"argument --query: 'Wh\udcfft?' is not UTF-8"),
        (["--query", "What?", "--image-file", "nowhere.png"], "there is no image file nowhere.png"),
        (["--query", "What?", "--image-file", "PICTURE", "--sep", ""], "--sep is empty"),
        (["--query", "What?", "--image-file", "PICTURE", "--top_p", "2"], "top_p is 2.0; accepted: above 0"),
        (["--query", "What?", "--image-file", "PICTURE", "--num_beams", "0"], "num_beams is 0; accepted: 1"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], sentence: str, pictures: list[str], capsys: pytest.CaptureFixture[str]
):
    assert run_llava.main([word.replace("PICTURE", pictures[0]) for word in arguments]) == 2
    assert sentence in capsys.readouterr().err
