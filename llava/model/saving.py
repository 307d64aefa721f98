"""Writing a full checkpoint so that it loads from its new folder as it did from where it came from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from llava.errors import UserError
from llava.model.checkpoint_files import TOWER, lies_beside, name_elsewhere

if TYPE_CHECKING:
    from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM


# Settings of generation that count only where tokens are drawn by chance, and only with several beams.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
OF_BEAMS = ("length_penalty", "early_stopping")


def refuse_existing_model(folder: Path, option: str) -> None:
    """Refuse to write a model where there is one, before minutes go into it.

    Args:
        folder: Where the result is to go.
        option: What names it on the command line.

    Raises:
        UserError: If it holds a model.
    """
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a model already; name another folder with {option}")


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


def complete_config(model: LlavaLlamaForCausalLM, folder: Path) -> None:
    """Let the config of a model name its vision tower so that a checkpoint in ``folder`` finds it.

    A folder that the config names relative to where the model came from is named by its absolute path, unless
    it lies beside ``folder`` in the same way.
    """
    tower, name = model.get_vision_tower(), getattr(model.config, "mm_vision_tower", None)
    if tower is None or name != tower.vision_tower_name:
        return
    elsewhere = tower.name_elsewhere if tower.is_loaded else name_elsewhere(name, Path(model.name_or_path))
    if not lies_beside(Path(elsewhere), name, folder):
        model.config.mm_vision_tower = elsewhere


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
        tower.require_loaded()
        state |= {f"{TOWER}{name}": tensor.cpu() for name, tensor in tower.state_dict().items()}
    return state


@contextmanager
def valid_generation_config(model: LlavaLlamaForCausalLM) -> Iterator[None]:
    """Let a model's generation settings be saved while the block runs.

    Vicuna has a temperature and does not say that it samples, which transformers loads and refuses to save.
    Such settings, which count for nothing, are left out of the copy that is saved.
    """
    settings = model.generation_config
    saved = deepcopy(settings)
    if settings is not None and not settings.do_sample:
        for name in SAMPLING:
            setattr(saved, name, None)
    if settings is not None and (settings.num_beams or 1) == 1:
        for name in OF_BEAMS:
            setattr(saved, name, None)
    model.generation_config = saved
    try:
        yield
    finally:
        model.generation_config = settings


def share_weights(folder: Path) -> None:
    """Let those read a checkpoint's weights who may read its config: safetensors lets their owner alone."""
    for path in folder.glob("*.safetensors"):
        shutil.copymode(folder / "config.json", path)
