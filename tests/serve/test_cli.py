"""A conversation in the terminal: one picture, several turns, in a pipe as well."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava.errors import UserError
from llava.serve import cli


class FakeChat:
    """Echoes what it is asked, in two pieces."""

    roles = ("USER", "ASSISTANT")

    def __init__(self) -> None:
        self.options: list[Any] = []
        self.prompt = ""
        self.token_reduction: str | None = None
        self.answers: list[SimpleNamespace] = []

    def stream(self, text: str, generation: Any) -> Iterator[str]:
        if text == "bad":
            raise UserError("2 <image> placeholders in the question, 1 images given")
        self.prompt += f"USER: {text} ASSISTANT:"
        self.options.append(generation)
        yield "You said "
        if text == "worse":
            raise UserError("2 <image> placeholders in the question, 1 images given")
        yield text
        self.answers.append(SimpleNamespace(text=f"You said {text}"))


class FakeAssistant:
    def __init__(self) -> None:
        self.chats: list[tuple[tuple[int, int] | None, FakeChat]] = []

    def chat(self, image: Image.Image | None) -> FakeChat:
        self.chats.append((None if image is None else image.size, FakeChat()))
        return self.chats[-1][1]


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> FakeAssistant:
    fake = FakeAssistant()
    monkeypatch.setattr(cli, "load_assistant", lambda _: fake)
    return fake


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.new("RGB", (6, 4)).save(path)
    return str(path)


def talk(monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    return cli.main(arguments)


@pytest.mark.parametrize("end", ["", "\n", "   \nnever read\n"])
def test_turns_follow_until_an_empty_line_or_the_end(
    assistant: FakeAssistant,
    picture: str,
    end: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert talk(monkeypatch, f"one\ntwo\n{end}", "--image-file", picture, "--max-new", "9") == 0
    ((size, chat),) = assistant.chats
    assert size == (6, 4)
    assert [options.max_new_tokens for options in chat.options] == [9, 9]
    assert [options.temperature for options in chat.options] == [0.2, 0.2]
    output = capsys.readouterr().out
    assert "ASSISTANT: You said one\nUSER: ASSISTANT: You said two\n" in output
    assert "never" not in output


def test_debugging_shows_the_prompt(
    assistant: FakeAssistant,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert talk(monkeypatch, "one\n", "--image-file", picture, "--debug") == 0
    assert "{'prompt': 'USER: one ASSISTANT:', 'outputs': 'You said one'}" in capsys.readouterr().err
    assert len(assistant.chats) == 1


@pytest.mark.parametrize(("line", "said"), [("bad", ""), ("worse", "You said ")])
def test_a_wrong_turn_is_said_and_the_conversation_goes_on(
    line: str,
    said: str,
    assistant: FakeAssistant,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert talk(monkeypatch, f"one\n{line}\ntwo\n", "--image-file", picture) == 0
    ((_, chat),) = assistant.chats
    assert [answer.text for answer in chat.answers] == ["You said one", "You said two"]
    output = capsys.readouterr()
    assert output.err == "error: 2 <image> placeholders in the question, 1 images given\n"
    assert f"USER: ASSISTANT: {said}\nUSER: ASSISTANT: You said two\n" in output.out


def test_a_conversation_may_begin_without_an_image(
    assistant: FakeAssistant, picture: str, monkeypatch: pytest.MonkeyPatch
):
    assert talk(monkeypatch, f"one\n/image {picture}\ntwo\n") == 0
    assert [size for size, _ in assistant.chats] == [None, (6, 4)]


def test_commands_change_image_and_reduction_and_end_it(
    assistant: FakeAssistant,
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    Image.new("RGB", (8, 2)).save(tmp_path / "other one.png")
    lines = [
        *("one", "/reduction TRIM:5", f"/image {tmp_path}/other one.png", "two", "/quit", "never read"),
    ]
    assert talk(monkeypatch, "\n".join(lines), "--image-file", picture) == 0
    (first, chat), (second, other) = assistant.chats
    assert (first, second) == ((6, 4), (8, 2))
    assert (chat.token_reduction, other.token_reduction) == ("TRIM:5", "TRIM:5")
    assert (len(chat.options), len(other.options)) == (1, 1)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("/reduction TRIM:0", "'TRIM:0' is not a token reduction"),
        ("/reduction", "'' is not a token reduction"),
        ("/image nowhere.png", "there is no image file nowhere.png"),
        ("/image", "the path of the image is empty"),
        ("/help", "/help is no command; accepted: /image FILE, /reduction SPEC, /quit"),
    ],
)
def test_a_command_that_does_not_serve_is_said_and_the_conversation_goes_on(
    command: str,
    sentence: str,
    assistant: FakeAssistant,
    picture: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    assert talk(monkeypatch, f"one\n{command}\ntwo\n", "--image-file", picture) == 0
    ((_, chat),) = assistant.chats
    assert len(chat.options) == 2
    assert chat.token_reduction is None
    assert sentence in capsys.readouterr().err


@pytest.mark.usefixtures("assistant")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["one"], "unrecognized arguments: one"),
        (["--image-file", "nowhere.png"], "there is no image file nowhere.png"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert talk(monkeypatch, "", *arguments) == 2
    assert sentence in capsys.readouterr().err
