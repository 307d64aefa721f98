"""Two processes on a CPU, with DeepSpeed and without: what they save loads, and a killed run goes on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
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
    """Start a training run of two processes in a process group of its own; keywords are its flags."""
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
            start_new_session=True,
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
    # Worst seen: 1.5e-6, of an adapter that was merged; the others are equal or differ by 5e-7.
    torch.testing.assert_close(probe(model, tokenizer), live, atol=1e-5, rtol=1e-5)
    saved = weights_of(out)
    assert saved
    assert all(tensor.numel() for tensor in saved.values())
    assert not [name for name in saved if "vision_tower" in name]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights that a run left in its output folder."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    for name in ("mm_projector.bin", "non_lora_trainables.bin"):
        if (folder / name).is_file():
            found |= torch.load(folder / name, weights_only=True)
    return found


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
    """It is killed with -9 as soon as the log tells of step 5, wherever it is by then, and started again."""
    script = ("-m", "llava.train.train")
    steps = {"max_steps": 8, "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 2}
    flags = {**steps, "save_total_limit": 1, **flags}
    finish(launch(stage, *script, output_dir=tmp_path / "whole", **flags))
    run = launch(stage, *script, output_dir=tmp_path / "killed", **flags)
    assert run.stdout is not None
    for line in run.stdout:
        if "step 5/8" in line:
            break
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    left = sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*"))
    assert left
    # What a kill while writing leaves behind.
    (tmp_path / "killed" / "unfinished" / "checkpoint-6").mkdir(parents=True, exist_ok=True)
    time.sleep(0.5)
    output = finish(launch(stage, *script, output_dir=tmp_path / "killed", **flags))
    first, second = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert "step 8/8" in output
    assert "step 1/8" not in output
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # Worst seen: 0, the same bits.
        torch.testing.assert_close(second[name], tensor, atol=1e-6, rtol=1e-5)
    assert not (tmp_path / "killed" / "unfinished").exists()
