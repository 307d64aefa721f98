"""The commands over a real (tiny, random) checkpoint: what they print, and that bad input is one line."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from llava import assistant
from llava.eval import run_llava
from llava.main import main
from llava.serve import cli

GOLDEN = Path(__file__).parent / "golden"
TINY = GOLDEN / "llava-v1.5-tiny"
PATCHES = 576  # 24 x 24, as ViT-L/14-336


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.linear_gradient("L").convert("RGB").resize((120, 80)).save(path)
    return str(path)


@pytest.fixture
def ask(picture: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Runs ``llava ask --json`` and returns what it printed."""

    def run(*arguments: str, model: Path = TINY) -> dict:
        common = ["ask", "--json", "--device", "cpu", "--image", picture, "--max-new-tokens", "3"]
        assert main([*common, "--model-path", str(model), *arguments]) == 0
        output = capsys.readouterr()
        assert output.err == ""
        return json.loads(output.out)

    return run


def test_the_reduction_of_one_run_is_counted(ask: Callable[..., dict]):
    whole = ask("What is it?")
    reduced = ask("--token-reduction", "TRIM:64", "What is it?")
    assert (whole["patches"], whole["visual_tokens"]) == (PATCHES, PATCHES)
    assert (reduced["patches"], reduced["visual_tokens"]) == (PATCHES, 65)
    assert all(reduced[part] > 0 for part in ("vision_ms", "reduction_ms", "prefill_ms"))


def test_the_line_in_the_config_turns_it_on_and_the_option_off(ask: Callable[..., dict], tmp_path: Path):
    shutil.copytree(GOLDEN, tmp_path / "models")
    folder = tmp_path / "models" / TINY.name
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "mm_vision_token_reduce_func": "TRIM:-1"}))
    assert ask("What is it?", model=folder)["visual_tokens"] < PATCHES
    assert ask("--token-reduction", "none", "What is it?", model=folder)["visual_tokens"] == PATCHES


def test_half_precision_and_a_template_can_be_chosen(ask: Callable[..., dict]):
    assert ask("--dtype", "bf16", "--conv-mode", "llava_v0", "What is it?")["new_tokens"] <= 3


def test_the_kept_patches_are_drawn_on_the_picture(ask: Callable[..., dict], picture: str, tmp_path: Path):
    drawn = tmp_path / "kept.png"
    ask("--token-reduction", "TRIM:5", "--show-kept", str(drawn), "What is it?")
    with Image.open(drawn) as image:
        assert image.size == (120, 80)
        few = sum(ImageStat.Stat(image).mean)
    ask("--token-reduction", "TRIM:500", "--show-kept", str(drawn), "What is it?")
    with Image.open(drawn) as image:
        assert sum(ImageStat.Stat(image).mean) > few  # less of it is dimmed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model-path", "EMPTY", "What?"], "EMPTY has no"),
        (["--model-path", "/nowhere/llava", "What?"], "no model folder '/nowhere/llava'"),
        (["--model-path", "someone/some-model", "What?"], "someone/some-model"),
        (
            ["--model-path", "TINY", "--token-reduction", "TRIM:0", "What?"],
            "'TRIM:0' is not a token reduction",
        ),
        (["--model-path", "TINY", "--vision-tower", "nowhere", "What?"], "nowhere"),
        (
            ["--model-path", "TINY", "--dtype", "int3", "What?"],
            "'int3' is not a valid dtype; accepted: float32",
        ),
        (["--model-path", "TINY", "--device", "abacus", "What?"], "'abacus'"),
        (
            ["--model-path", "TINY", "--conv-mode", "poem", "What?"],
            "'poem' is not a valid conversation template",
        ),
        (
            ["--model-path", "TINY", "<image> <image> the same?"],
            "2 <image> placeholders in the question, 1 images",
        ),
        (["--model-path", "TINY", "<image>"], "the question is empty"),
        (["What?"], "no --model-path was given and the bundled shapes model is not at"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    arguments: list[str],
    sentence: str,
    picture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(assistant, "SHAPES_CHECKPOINT", tmp_path / "installed-without-the-repository")
    (tmp_path / "EMPTY").mkdir()
    places = {"TINY": str(TINY), "EMPTY": str(tmp_path / "EMPTY")}
    assert main(["ask", "--image", picture, *(places.get(word, word) for word in arguments)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1, output.err
    assert sentence in output.err


def test_a_conversation_in_a_pipe(
    picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\nAnd what else?\n"))
    arguments = ["--model-path", str(TINY), "--image-file", picture, "--device", "cpu"]
    assert (
        cli.main([*arguments, "--token-reduction", "TRIM:9", "--temp", "0", "--max-new", "2", "--debug"]) == 0
    )
    output = capsys.readouterr()
    assert output.out.count("ASSISTANT: ") == 2
    last_prompt = output.err.splitlines()[-1]
    assert (
        last_prompt.count("<image>") == 1 and "What is it?" in last_prompt and "And what else?" in last_prompt
    )


def test_two_pictures_at_their_places(picture: str, capsys: pytest.CaptureFixture[str]):
    arguments = ["--model-path", str(TINY), "--image-file", f"{picture},{picture}", "--device", "cpu"]
    query = "First <image-placeholder>, second <image-placeholder>: the same?"
    assert run_llava.main([*arguments, "--query", query, "--max_new_tokens", "2"]) == 0
    assert capsys.readouterr().out.endswith("\n")
    assert run_llava.main([*arguments, "--query", "One <image-placeholder>?"]) == 2
    assert "1 <image> placeholders in the question, 2 images given" in capsys.readouterr().err
