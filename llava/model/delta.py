"""Models published as the difference to their base: LLaVA's ``make_delta`` and ``apply_delta``.

Only what a license allowed to give away was published of the first LLaVAs: their weights less those of Llama.
"""

from __future__ import annotations

from pathlib import Path

import torch

from llava.errors import UserError
from llava.model.checkpoint_configs import read_llava_config
from llava.model.checkpoint_files import NEWLINE, PROJECTOR, TOWER, open_weights, resolve_folder, shapes_of
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading import load_checkpoint, load_language_model, quiet_transformers
from llava.model.placement import Placement
from llava.model.saving import check_output_folder
from llava.tokenizer import load_tokenizer

# What may have more rows than in the base, because tokens were added.
GROWN = ("model.embed_tokens.weight", "lm_head.weight")


def load_float16(name: str) -> tuple[LlavaLlamaForCausalLM, Path]:
    """Load a full checkpoint in float16, and CLIP only if it was trained with the model.

    Args:
        name: Folder or hub id.

    Returns:
        The model and its folder.

    Raises:
        UserError: If it is none, or damaged.
    """
    folder = resolve_folder(name)
    placement = Placement(torch.device("cpu"), torch.float16)
    config = read_llava_config(folder)
    if getattr(config, "unfreeze_mm_vision_tower", False):
        return load_checkpoint(folder, None, placement).model, folder
    return load_language_model(folder, config, placement), folder


def save_float16(model: LlavaLlamaForCausalLM, tokenizer_of: Path, target: Path) -> None:
    """Write a model and the tokenizer of a folder.

    Raises:
        UserError: If ``target`` cannot be written.
    """
    check_output_folder(target)
    with quiet_transformers():
        model.save_pretrained(target)
    load_tokenizer(tokenizer_of).save_pretrained(target)


@torch.no_grad()
def add_base(model: LlavaLlamaForCausalLM, base: str, sign: int) -> None:
    """Add the weights of a base to those of a model, or subtract them.

    Args:
        model: Changed in place; what it has of vision is its own and stays.
        base: Folder or hub id of the language model.
        sign: 1 makes a model of a difference, -1 the reverse.

    Raises:
        UserError: If the base lacks a weight or has another shape.
    """
    folder = resolve_folder(base)
    stored = open_weights(folder)
    shapes = shapes_of(stored)
    for name, weight in model.state_dict().items():
        if name.startswith(TOWER) or PROJECTOR in name or name == NEWLINE:
            continue
        shape = shapes.get(name, ())
        rows = shape[0] if name in GROWN and shape else len(weight)
        if shape != (rows, *weight.shape[1:]) or rows > len(weight):
            raise UserError(
                f"{folder} is not the base of {model.name_or_path}: its {name} is of shape {shape}, and "
                f"{tuple(weight.shape)} is needed"
            )
        weight[:rows] += sign * stored[name][...].to(weight.dtype)
