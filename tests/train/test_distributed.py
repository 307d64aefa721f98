"""Two processes on a CPU, with DeepSpeed and without: what they save loads, and a killed run goes on."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from llava.folder_lock import lock_folder
from llava.model.builder import load_pretrained_model
from tests.train.conftest import weights_of
from tests.train.train_and_probe import probe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("train_and_probe.py")
ZERO = {name: str(ROOT / "scripts" / f"{name}.json") for name in ("zero2", "zero3", "zero3_offload")}
LORA = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.05, "mm_projector_lr": 2e-3}
LIMIT_S = 400

Launch = Callable[..., subprocess.Popen]


@pytest.fixture
def launch(tmp_path: Path, command: Callable[..., list[str]]) -> Launch:
    """Start a training run of two processes; keywords are its flags."""
    port = 29600 + os.getpid() % 300

    def start(stage: str, *script: str, **flags: object) -> subprocess.Popen:
        environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # DeepSpeed needs ninja
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
        return subprocess.Popen(
            [*launcher, "--master_port", str(port), *script, *command(stage, **flags)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def finish(process: subprocess.Popen) -> str:
    """Wait for a run, which must succeed, and return what it printed."""
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("pretrain", {"deepspeed": ZERO["zero2"]}),
        ("pretrain", {"deepspeed": ZERO["zero3"], "mm_use_im_start_end": True}),
        ("finetune", {"deepspeed": ZERO["zero3"], "group_by_modality_length": True}),
        ("finetune", {"deepspeed": ZERO["zero3"], "gradient_checkpointing": True, **LORA}),
        ("finetune", {"deepspeed": ZERO["zero2"], "bits": 4, **LORA}),
        ("finetune", {"group_by_modality_length": True, **LORA}),
    ],
    ids=["projector-zero2", "projector-zero3", "whole-zero3", "lora-zero3", "qlora-zero2", "lora-ddp"],
)
def test_what_is_saved_answers_as_what_was_trained(
    launch: Launch, language_model: Path, tmp_path: Path, stage: str, flags: dict[str, object]
):
    finish(launch(stage, str(RUNNER), "live.pt", max_steps=4, **flags))
    live, out = torch.load(tmp_path / "live.pt"), tmp_path / "out"
    is_whole = stage == "finetune" and "lora_enable" not in flags
    tokenizer, model, _, _ = load_pretrained_model(
        str(out), None if is_whole else str(language_model), "out", device="cpu", load_4bit="bits" in flags
    )
    # Worst seen: 5.4e-7, of an adapter that was merged; all others are equal.
    torch.testing.assert_close(probe(model, tokenizer), live, atol=1e-5, rtol=1e-5)
    saved = weights_of(out)
    assert saved
    assert all(tensor.numel() for tensor in saved.values())
    assert not [name for name in saved if "vision_tower" in name]


def test_processes_without_a_picture_do_not_keep_others_waiting(launch: Launch, data: Path, tmp_path: Path):
    """ZeRO-3 waits for all to run each module; here one has text, or nothing, and the other a picture."""
    images = shutil.copytree(data, tmp_path / "images")
    (images / "3.png").write_bytes(b"no picture")
    records = json.loads((data / "turns.json").read_text())
    # Of two processes, one sample each: picture and text, text and picture, a broken picture and a picture.
    order = [records[index] for index in (0, 4, 5, 1, 3, 2)]
    (tmp_path / "order.json").write_text(json.dumps(order))
    output = finish(
        launch(
            "finetune",
            *("-m", "llava.train.train"),
            deepspeed=ZERO["zero3"],
            data_path=tmp_path / "order.json",
            image_folder=images,
            train_sampling_strategy="sequential",
            on_bad_image="skip",
            per_device_train_batch_size=1,
            max_steps=3,
        )
    )
    assert "left out: record 4 (id '3'): " in output
    # One picture per step in all.
    shown = re.findall(
        r"visual_tokens_mean (\d+)\S*  visual_tokens_min (\d+)  visual_tokens_max (\d+)", output
    )
    assert len(shown) == 3
    assert all(mean == least == most for mean, least, most in shown)
    assert re.search(r"step 3/3 .*skipped_records 1 ", output)


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("pretrain", {"deepspeed": ZERO["zero2"]}),
        ("finetune", {"deepspeed": ZERO["zero3"], "group_by_modality_length": True}),
        ("finetune", {"group_by_modality_length": True, **LORA}),
        ("finetune", {"deepspeed": ZERO["zero2"], **LORA}),
    ],
    ids=["projector-zero2", "whole-zero3", "lora-ddp", "lora-zero2"],
)
def test_a_killed_run_ends_like_one_that_was_not(
    launch: Launch, tmp_path: Path, stage: str, flags: dict[str, object]
):
    """It is killed with -9 when the log tells of step 5, whose checkpoint follows, and started again."""
    script = ("-m", "llava.train.train")
    # Epochs of 2 or 3 steps: it stops and goes on in the middle of a later one.
    steps = {"max_steps": 8, "per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1}
    flags = {**steps, "save_total_limit": 1, **flags}
    finish(launch(stage, *script, output_dir=tmp_path / "whole", **flags))
    run = launch(stage, *script, output_dir=tmp_path / "killed", **flags)
    assert run.stdout is not None
    for line in run.stdout:
        if "step 5/8" in line:
            break
    for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
        process.kill()
    run.wait()
    assert list((tmp_path / "killed").glob("checkpoint-*"))
    # What a kill while writing leaves behind.
    (tmp_path / "killed" / "unfinished" / "checkpoint-6").mkdir(parents=True, exist_ok=True)
    output = finish(launch(stage, *script, output_dir=tmp_path / "killed", **flags))
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert "step 8/8" in output
    assert "step 1/8" not in output
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Worst seen: 0, the same bits.
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5)
    assert not (tmp_path / "killed" / "unfinished").exists()


def test_no_process_begins_while_another_launch_has_the_folder(launch: Launch, tmp_path: Path):
    (tmp_path / "out").mkdir()
    with lock_folder(tmp_path / "out", "--output_dir"):
        process = launch("pretrain", "-m", "llava.train.train")
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert "error: another run is writing to the folder" in output
    assert "step 1/" not in output
    assert list((tmp_path / "out").iterdir()) == []


def test_all_processes_resume_from_one_checkpoint_or_refuse_it(launch: Launch, tmp_path: Path):
    flags = {"save_strategy": "steps", "save_steps": 1}
    finish(launch("pretrain", "-m", "llava.train.train", max_steps=1, **flags))
    process = launch("pretrain", "-m", "llava.train.train", max_steps=2, **flags)
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode != 0
    assert "--max_steps is 1 there and 2 here" in output and "step 2/" not in output
    again = launch("pretrain", "-m", "llava.train.train", max_steps=2, resume_anyway=True, **flags)
    output = finish(again)
    assert "resuming behind step 1 of 2: 1 are left" in output
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file()
