"""Stages 1 and 2: the command lines of the project's own training script, as this dataset uses it."""

import os
import subprocess
import sys
from pathlib import Path

from llava.errors import UserError
from playground.shapes.loop import workers

ROOT = Path(__file__).resolve().parents[2]

# What both stages share; names and meaning are LLaVA's.
COMMON: dict[str, object] = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "image_aspect_ratio": "pad",
    "num_train_epochs": 1,
    "weight_decay": 0.0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 10,
    "save_strategy": "steps",
    "save_total_limit": 1,
    "model_max_length": 2048,
    "dataloader_num_workers": workers(),
    "report_to": "none",
    "seed": 0,
}


def run_stage1(work: Path, reduction: str, output: Path) -> None:
    """Train the projector alone on captions.

    Args:
        work: The build's folder, with ``llama``, ``clip-shapes``, ``pictures`` and ``stage1.json``.
        reduction: What the reducer is set to; ``none`` for none.
        output: Receives ``mm_projector.bin``; exists afterwards only if complete.

    Raises:
        UserError: If the training fails.
    """
    own = {
        "version": "plain",
        "mm_vision_token_reduce_func": reduction,
        "data_path": work / "stage1.json",
        "tune_mm_mlp_adapter": True,
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-3,
        "save_steps": 50,
    }
    _train(work, output, own)


def run_stage2(
    work: Path, reduction: str, projector: Path, batch: int, output: Path, questions: Path | None = None
) -> None:
    """Train projector and language model on questions.

    Args:
        work: The build's folder, with ``llama``, ``clip-shapes``, ``pictures`` and ``stage2.json``.
        reduction: As in stage 1.
        projector: What stage 1 wrote.
        batch: Samples per step.
        output: Receives the checkpoint; exists afterwards only if complete.
        questions: The training set, instead of ``stage2.json``.

    Raises:
        UserError: If the training fails.
    """
    own = {
        "version": "v1",
        "mm_vision_token_reduce_func": reduction,
        "data_path": questions or work / "stage2.json",
        "pretrain_mm_mlp_adapter": projector,
        "per_device_train_batch_size": batch,
        # The file's own order: its batches hold samples of one length.
        "train_sampling_strategy": "sequential",
        "learning_rate": 5e-4,
        "mm_projector_lr": 2e-3,
        "save_steps": 50,
    }
    _train(work, output, own)


def _train(work: Path, output: Path, own: dict[str, object]) -> None:
    """Run the training script in a process of its own; it resumes from its last checkpoint by itself.

    Raises:
        UserError: If it fails.
    """
    unfinished = output.with_name(output.name + ".unfinished")
    places = {
        "model_name_or_path": work / "llama",
        "vision_tower": work / "clip-shapes",
        "image_folder": work / "pictures",
        "output_dir": unfinished,
    }
    flags = [part for name, value in (places | COMMON | own).items() for part in (f"--{name}", str(value))]
    # Everything is on this disk: nothing is to be looked up anywhere.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llava.train.train", *flags]
    code = subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode
    if code:  # the training has said why
        raise UserError(f"the training of {output} ended with exit code {code}; its own error is above")
    unfinished.rename(output)
