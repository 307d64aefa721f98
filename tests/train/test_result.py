"""The end of a run says where its result is, and how to ask it: with a command that works as it stands."""

import json
import os
import shlex
import stat
from pathlib import Path

import pytest

from llava.main import main
from llava.train.train import train

LORA = {"lora_enable": True, "lora_r": 4}
# Stage, flags, and what the command names beside the result.
KINDS = {
    "whole": ("finetune", {}, []),
    "projector": ("pretrain", {}, ["--model-base"]),
    "lora": ("finetune", LORA, ["--model-base"]),
    "qlora": ("finetune", {**LORA, "bits": 4}, ["--model-base", "--load-4bit"]),
}
QUESTION = "What color is the circle?"


def last_line(caplog: pytest.LogCaptureFixture) -> str:
    return [record.message for record in caplog.records if record.name == "llava.train.train"][-1]


@pytest.mark.parametrize(
    "kind", ["whole", "projector", "lora", pytest.param("qlora", marks=pytest.mark.slow)]
)
def test_the_command_can_be_pasted(command, caplog, capsys, data: Path, tmp_path: Path, kind: str):
    stage, flags, named = KINDS[kind]
    caplog.set_level("INFO", logger="llava")
    train(argv=command(stage, max_steps=1, **flags))
    place, _, line = last_line(caplog).partition("; ask it: ")
    assert place == f"the result is in {tmp_path / 'out'}"
    words = shlex.split(line)
    assert words[:4] == ["llava", "ask", "--model-path", str(tmp_path / "out")]
    assert [word for word in words if word.startswith("--")] == ["--model-path", *named, "--image"]
    assert words[-2:] == [str(data / "0.png"), QUESTION]
    capsys.readouterr()
    assert main([*words[1:], "--max-new-tokens", "2"]) == 0
    assert "patches ->" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [{}, {"bf16": True}, LORA], ids=["whole", "16 bits", "lora"])
def test_whoever_may_read_new_files_may_read_the_weights(command, tmp_path: Path, flags: dict):
    before = os.umask(0o027)
    try:
        train(argv=command("finetune", max_steps=1, save_strategy="steps", save_steps=1, **flags))
    finally:
        os.umask(before)
    weights = list((tmp_path / "out").rglob("*.safetensors"))
    assert len(weights) == 2  # of the result and of a checkpoint
    assert {stat.S_IMODE(path.stat().st_mode) for path in weights} == {0o640}


def test_an_image_that_is_there_is_asked_about(command, caplog, data: Path, tmp_path: Path):
    caplog.set_level("INFO", logger="llava")
    records = json.loads((data / "captions.json").read_text())
    records[0]["image"] = "missing.png"
    records[1]["conversations"][0]["value"] = "<image>"
    (tmp_path / "data.json").write_text(json.dumps(records))
    train(argv=command("pretrain", max_steps=1, data_path=tmp_path / "data.json", on_bad_image="skip"))
    words = shlex.split(last_line(caplog))
    assert words[-2:] == [str(data / "1.png"), "What is shown in the image?"]


def test_where_nothing_can_be_asked_the_place_alone_is_said(command, caplog, data: Path, tmp_path: Path):
    caplog.set_level("INFO", logger="llava")
    records = [record for record in json.loads((data / "turns.json").read_text()) if "image" not in record]
    (tmp_path / "text.json").write_text(json.dumps(records))
    vision = dict.fromkeys(["vision_tower", "mm_vision_token_reduce_func"])
    train(argv=command("finetune", data_path=tmp_path / "text.json", max_steps=1, **vision))
    assert last_line(caplog) == f"the result is in {tmp_path / 'out'}"
    train(argv=command("pretrain", max_steps=1, output_dir=tmp_path / "checkpoint-1"))
    projector = tmp_path / "mm_projector" / "checkpoint-1.bin"
    assert last_line(caplog) == f"the projector is in {projector}, for --pretrain_mm_mlp_adapter"
    assert projector.is_file()
