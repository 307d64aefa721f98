"""What training writes and how it goes on from what it wrote."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from llava.errors import UserError
from llava.model.checkpoint_files import read_tensors

ADAPTER_FILE = "mm_projector.bin"
TOWER = "vision_tower."

# Parts that projector-only training saves; the embeddings only where it trained new tokens.
ADAPTER_PARTS = ("mm_projector", "vision_resampler")
EMBEDDING_PARTS = ("embed_tokens", "embed_in")


def check_output_folder(folder: str | Path) -> None:
    """Create the output folder if need be.

    Raises:
        UserError: If nothing can be written there.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the output folder {str(folder)!r} cannot be created: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"the output folder {str(folder)!r} cannot be written")


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest whole ``checkpoint-*`` of an output folder, or ``None``.

    The trainer's state is the last file written, so a checkpoint without it was cut short.
    """
    numbered = [
        (int(match[1]), path)
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / TRAINER_STATE_NAME).is_file()
    ]
    return max(numbered)[1] if numbered else None


def trained_state(model: Any, state_dict: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return a model's weights without its frozen CLIP's, which loaders take from CLIP's own files.

    Args:
        model: A LLaVA model.
        state_dict: Its weights, where they had to be gathered.
    """
    state = model.state_dict() if state_dict is None else state_dict
    if getattr(model.config, "unfreeze_mm_vision_tower", False):
        return state
    return {name: tensor for name, tensor in state.items() if TOWER not in name}


def save_adapter(model: Any, folder: Path, state_dict: dict[str, Tensor] | None = None) -> None:
    """Write config.json and ``mm_projector.bin``, LLaVA's form of a pretraining result.

    Args:
        model: A LLaVA model.
        folder: Where to.
        state_dict: The model's weights, where they had to be gathered.
    """
    new_tokens = getattr(model.config, "mm_use_im_start_end", False)
    parts = (*ADAPTER_PARTS, *(EMBEDDING_PARTS if new_tokens else ()))
    state = model.state_dict() if state_dict is None else state_dict
    tensors = {
        name: tensor.detach().cpu() for name, tensor in state.items() if any(part in name for part in parts)
    }
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    torch.save(tensors, folder / ADAPTER_FILE)


def load_adapter(model: nn.Module, folder: Path) -> None:
    """Read back what `save_adapter` wrote.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it does not fit the model.
    """
    tensors = read_tensors(folder / ADAPTER_FILE)
    try:
        unexpected = model.load_state_dict(tensors, strict=False).unexpected_keys
    except RuntimeError as error:
        raise UserError(f"{folder / ADAPTER_FILE} does not fit the model: {error}") from error
    if unexpected:
        raise UserError(f"{folder / ADAPTER_FILE} holds {unexpected[0]!r}, which the model has not")


def save_final(trainer: Any) -> None:
    """Write the result of a run into its output folder: a whole model, or a projector and its config.

    As in LLaVA, the projector of a run whose output folder is itself named ``checkpoint-*`` goes to
    ``mm_projector/<name>.bin`` beside that folder.
    """
    folder = Path(trainer.args.output_dir)
    trainer.save_state()
    trainer.model.config.use_cache = True
    if trainer.args.compute_dtype != torch.float32 and not trainer.is_deepspeed_enabled:
        # The float32 weights were for the optimizer's small steps; what computes in 16 bits is stored so.
        trainer.model.to(trainer.args.compute_dtype)
    trainer.save_model(str(folder))
    adapter = folder / ADAPTER_FILE
    if trainer.args.should_save and folder.name.startswith("checkpoint-") and adapter.is_file():
        target = folder.parent / "mm_projector" / f"{folder.name}.bin"
        target.parent.mkdir(exist_ok=True)
        adapter.replace(target)
