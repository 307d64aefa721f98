"""Writing a full checkpoint so that it loads from its new folder as it did from where it came from."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.model.checkpoint_files import TOWER, name_elsewhere
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM


def save_full_checkpoint(
    model: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path, beside: Path
) -> None:
    """Write weights, config and tokenizer of a model.

    Args:
        model: As it was loaded; its config and sampling settings are completed in place.
        tokenizer: Of the model.
        folder: Where to; made if need be.
        beside: The checkpoint whose config says where CLIP is.
    """
    tower = getattr(model.config, "mm_vision_tower", None)
    if tower is not None:
        model.config.mm_vision_tower = name_elsewhere(tower, beside)
    complete_sampling(model)
    model.save_pretrained(folder, state_dict=full_state_dict(model))
    tokenizer.save_pretrained(folder)


def full_state_dict(
    model: LlavaLlamaForCausalLM, state_dict: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the weights of a model's full checkpoint.

    Frozen CLIP is left out, since every loader takes it from CLIP's own files, unless it was trained with the
    model.

    Args:
        model: Its tower may be held apart.
        state_dict: Its weights, where they had to be gathered.
    """
    state = model.state_dict() if state_dict is None else state_dict
    state = {name: tensor for name, tensor in state.items() if not name.startswith(TOWER)}
    tower = model.get_vision_tower()
    if tower is not None and getattr(model.config, "unfreeze_mm_vision_tower", False):
        state |= {f"{TOWER}{name}": tensor.cpu() for name, tensor in tower.state_dict().items()}
    return state


def complete_sampling(model: LlavaLlamaForCausalLM) -> None:
    """Let a model's sampling settings be saved: Vicuna has a temperature without saying that it samples."""
    settings = model.generation_config
    if settings is not None and (
        settings.temperature not in (None, 1.0) or settings.top_p not in (None, 1.0)
    ):
        settings.do_sample = True
