"""What a run trains, written into its checkpoints, so that no other run resumes from them unnoticed."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import UserError
from llava.model.checkpoint_files import own_file, read_config

if TYPE_CHECKING:
    from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments

logger = logging.getLogger(__name__)

FINGERPRINT_FILE = "training_run.json"
MOST_SHOWN = 6
_CHUNK_BYTES = 2**20

# Settings of transformers and of LLaVA that decide what weights become.
SETTINGS = (
    *("learning_rate", "mm_projector_lr", "weight_decay", "max_grad_norm"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "neftune_noise_alpha"),
    *(
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "warmup_ratio",
        "num_train_epochs",
        "max_steps",
    ),
    *("seed", "data_seed", "bf16", "fp16", "model_max_length", "loss_average"),
    *("group_by_modality_length", "group_by_length", "train_sampling_strategy", "dataloader_drop_last"),
    *("bits", "double_quant", "quant_type", "freeze_mm_mlp_adapter"),
    *("lora_enable", "lora_r", "lora_alpha", "lora_dropout", "lora_bias"),
)
# Files and folders: what they hold counts, not how they are called.
_PATHS = ("model_name_or_path", "vision_tower", "pretrain_mm_mlp_adapter")


def fingerprint_of(
    model_args: ModelArguments, data_args: DataArguments, training_args: TrainingArguments
) -> dict[str, Any]:
    """Return what decides the result of a run, by the names of the command line.

    Where the data lie, on how many processes the batches are spread, what is logged and saved and how often
    does not.

    Raises:
        UserError: If the data file cannot be read.
    """
    found: dict[str, Any] = {item.name: getattr(model_args, item.name) for item in fields(model_args)}
    found |= {name: _place(found[name]) for name in _PATHS}
    if model_args.pretrain_mm_mlp_adapter:
        found["pretrain_mm_mlp_adapter"] = _digest(model_args.pretrain_mm_mlp_adapter)
    found |= {name: getattr(training_args, name, None) for name in SETTINGS}
    found["data_path"] = None if data_args.data_path is None else _digest(data_args.data_path)
    found["image_aspect_ratio"] = data_args.image_aspect_ratio
    found["samples per update"] = (
        training_args.per_device_train_batch_size
        * training_args.gradient_accumulation_steps
        * training_args.world_size
    )
    return json.loads(json.dumps(found, default=str))  # as it will be read again


def write_fingerprint(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Write a fingerprint into a checkpoint."""
    (folder / FINGERPRINT_FILE).write_text(json.dumps(fingerprint, indent=2) + "\n")


def check_same_run(checkpoint: Path, fingerprint: dict[str, Any], *, anyway: bool) -> None:
    """Make sure that a checkpoint is one of this run.

    Args:
        checkpoint: A whole one.
        fingerprint: Of this run.
        anyway: Resume in spite of differences, which are said.

    Raises:
        UserError: If it is of a run that trains something else, or otherwise.
    """
    if own_file(checkpoint, FINGERPRINT_FILE) is None:
        logger.warning(
            "%s does not say what its run trained: that this one is the same is not known", checkpoint
        )
        return
    recorded = read_config(checkpoint, FINGERPRINT_FILE)
    # What only one of them has is of another version of this program.
    differing = [name for name in fingerprint if name in recorded and recorded[name] != fingerprint[name]]
    if not differing:
        return
    shown = [f"{_flag(name)} is {recorded[name]} there and {fingerprint[name]} here" for name in differing]
    more = f", and {len(shown) - MOST_SHOWN} more" if len(shown) > MOST_SHOWN else ""
    sentence = f"{checkpoint} is of a run with other settings: {'; '.join(shown[:MOST_SHOWN])}{more}"
    if not anyway:
        raise UserError(
            f"{sentence}. Choose another --output_dir, --overwrite_output_dir True to begin anew, or "
            "--resume_anyway True to go on with the new settings"
        )
    logger.warning("%s; resumed anyway, with the optimizer and the schedule of the checkpoint", sentence)


def _flag(name: str) -> str:
    if name == "data_path":
        return "the content of --data_path (its SHA-256)"
    return name if " " in name else f"--{name}"


def _place(name: str | None) -> str | None:
    """Return a path as it is on this machine, however it is written; a name of the model hub as it is."""
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().exists() else name


def _digest(path: str) -> str:
    """Return the first half of a file's SHA-256.

    Raises:
        UserError: If it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with Path(path).expanduser().open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()[:32]
