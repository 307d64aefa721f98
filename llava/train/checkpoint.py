"""What training writes and how it resumes from what it wrote."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from copy import deepcopy
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.trainer import TRAINER_STATE_NAME

from llava.errors import MissingFileError, UserError
from llava.model.checkpoint_files import (
    NON_LORA_FILE,
    PROJECTOR_FILE,
    CheckpointKind,
    StoredWeight,
    checkpoint_kind,
    dtypes_of,
    read_tensors,
    shapes_of,
)
from llava.model.checkpoint_sizes import refuse_other_shapes, refuse_other_types
from llava.model.loading import QUANTIZATION_KEYS
from llava.model.saving import share_weights
from llava.train.fingerprint import write_fingerprint
from llava.train.lora import drop_new_keys

logger = logging.getLogger(__name__)

LORA = "lora_"


# Files of a result, by what it is.
RESULT_FILES = {
    CheckpointKind.FULL: ("model*.safetensors", "pytorch_model*.bin", "*.index.json"),
    CheckpointKind.LORA: ("adapter_config.json", "adapter_model.*", NON_LORA_FILE),
    CheckpointKind.PROJECTOR: (PROJECTOR_FILE,),
}


def check_kind(folder: str | Path, kind: CheckpointKind) -> None:
    """Make sure that an output folder holds no result of another kind, which would be loaded in its place.

    Args:
        folder: The output folder.
        kind: What the run saves.

    Raises:
        UserError: If it does.
    """
    for other, patterns in RESULT_FILES.items():
        found = [path.name for pattern in patterns for path in sorted(Path(folder).glob(pattern))]
        if other is not kind and found:
            raise UserError(
                f"{str(folder)!r} holds {found[0]}, of {other.value}, and this run trains {kind.value}: "
                "choose another --output_dir, or --overwrite_output_dir True to remove it"
            )


def refuse_inputs_inside(folder: str | Path, inputs: Mapping[str, str | Path | None]) -> None:
    """Refuse to clear, and to write into, an output folder that holds what the run reads.

    Args:
        folder: The output folder, which exists.
        inputs: Files and folders that are read, by their options; hub ids and what is missing are none.

    Raises:
        UserError: If one is the output folder or lies below it, also by way of a link.
    """
    for option, source in inputs.items():
        path = None if source is None else Path(source)
        if path is None or not path.exists():
            continue
        # By name as well, since a link in the output folder may be removed.
        named, real = Path(os.path.normpath(path.absolute())), path.resolve()
        places = (named, *named.parents, real, *real.parents)
        if any(place.exists() and place.samefile(folder) for place in places):
            raise UserError(
                f"{option} {source} is read, and lies where --output_dir {folder} is written and cleared; "
                "name another folder for the output"
            )


def clear_output(folder: str | Path) -> None:
    """Remove what earlier runs left in an output folder: checkpoints and results, and nothing else."""
    checkpoints = ("checkpoint-*", "replaced-checkpoint-*")
    patterns = (*checkpoints, *(pattern for patterns in RESULT_FILES.values() for pattern in patterns))
    for path in {path for pattern in patterns for path in Path(folder).glob(pattern)}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    remove_unfinished(folder)


def find_checkpoint(folder: str | Path, named: str | None) -> Path | None:
    """Return the checkpoint that a run resumes from, or ``None``.

    Args:
        folder: The output folder, whose newest whole checkpoint is taken.
        named: Of ``--resume_from_checkpoint``: a checkpoint, or only whether it is to resume.

    Raises:
        UserError: If the checkpoint that was named is not whole, none is there though it is to resume, or one
            is though it is not.
    """
    wanted = (named or "").lower()
    if named and wanted not in ("true", "false"):
        path = Path(named).expanduser()
        if not _is_whole(path):
            raise UserError(
                f"--resume_from_checkpoint is {named!r}, which is no whole checkpoint-<step> folder"
            )
        return path
    found = last_checkpoint(folder)
    if wanted == "true" and found is None:
        raise UserError(f"--resume_from_checkpoint is True, and {str(folder)!r} holds no whole checkpoint")
    if wanted == "false" and found is not None:
        raise UserError(
            f"--resume_from_checkpoint is False, and {str(folder)!r} holds {found.name}: choose another "
            "--output_dir, or --overwrite_output_dir True to begin anew"
        )
    return found


def last_checkpoint(folder: str | Path) -> Path | None:
    """Return the newest whole ``checkpoint-*`` of an output folder, or ``None``.

    The trainer's state is the last file written, so a checkpoint without it was cut short.
    """
    whole = [path for _, path in _checkpoints(folder) if _is_whole(path)]
    return whole[-1] if whole else None


def _checkpoints(folder: str | Path) -> list[tuple[int, Path]]:
    """Return steps and folders of an output folder's checkpoints by step, also of those cut short."""
    return sorted(
        (int(match[1]), path)
        for path in Path(folder).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    )


def _is_whole(checkpoint: Path) -> bool:
    return (checkpoint / TRAINER_STATE_NAME).is_file()


def check_resumable(checkpoint: Path, kind: CheckpointKind, processes: int, with_deepspeed: bool) -> None:
    """Make sure that a run can resume from a checkpoint; under DeepSpeed every process has a share of it.

    Args:
        checkpoint: A whole one.
        kind: What the run saves.
        processes: How many the run has.
        with_deepspeed: Whether it runs under DeepSpeed.

    Raises:
        UserError: If it cannot.
    """
    try:
        found = checkpoint_kind(checkpoint)
    except MissingFileError:  # of a DeepSpeed that does not gather weights: they are in its shares alone
        found = kind
    if found is not kind:
        raise UserError(
            f"{checkpoint} is of another kind of run: it holds {found.value}, and this run trains "
            f"{kind.value}; choose another --output_dir"
        )
    shares = len(list(checkpoint.glob("global_step*/*optim_states.pt")))
    if shares == (processes if with_deepspeed else 0):
        return
    written = f"by {shares} processes under DeepSpeed" if shares else "without DeepSpeed"
    here = f"{processes} under DeepSpeed" if with_deepspeed else "a run without it"
    raise UserError(
        f"{checkpoint} was written {written}, and {here} cannot resume from it; start as before, or choose "
        "another --output_dir"
    )


def unfinished_folder(folder: str | Path) -> Path:
    """Return where, below an output folder, a checkpoint is while it is being written."""
    return Path(folder) / "unfinished"


def remove_unfinished(folder: str | Path) -> None:
    """Remove what a run that was killed left half written in an output folder."""
    shutil.rmtree(unfinished_folder(folder), ignore_errors=True)


def finish_checkpoint(folder: str | Path, fingerprint: dict[str, Any]) -> None:
    """Give a checkpoint that is written its name in the output folder, where it is then the last one.

    Args:
        folder: The output folder.
        fingerprint: Of the run, which goes into the checkpoint.
    """
    unfinished = unfinished_folder(folder)
    for checkpoint in unfinished.glob("checkpoint-*"):
        write_fingerprint(checkpoint, fingerprint)
        _set_later_aside(folder, checkpoint.name)
        checkpoint.rename(Path(folder) / checkpoint.name)
    unfinished.rmdir()


def _set_later_aside(folder: str | Path, name: str) -> None:
    """Rename whole checkpoints of this step and of later ones, from which a run went back to an older one.

    They would be taken for newer than what the run writes now. Those that were cut short are removed.
    """
    step = int(name.removeprefix("checkpoint-"))
    for later, path in _checkpoints(folder):
        if later < step:
            continue
        if not _is_whole(path):
            shutil.rmtree(path, ignore_errors=True)
            continue
        names = (f"replaced-{path.name}{end}" for end in chain([""], (f"-{number}" for number in count(2))))
        target = next(path.with_name(free) for free in names if not path.with_name(free).exists())
        path.rename(target)
        logger.warning(
            "%s is of a run that went further, and this one has come to step %d anew: it is now %s",
            *(path, step, target.name),
        )


def remove_older(folder: str | Path, kept: int | None) -> None:
    """Remove all checkpoints but the last ones.

    Args:
        folder: The output folder.
        kept: How many of the last ones stay: ``--save_total_limit``; without one, or for 0, all of them.
    """
    for _, path in _checkpoints(folder)[: -kept if kept and kept > 0 else 0]:
        shutil.rmtree(path, ignore_errors=True)


def save_projector(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write config.json and ``mm_projector.bin``, LLaVA's form of a pretraining result.

    Args:
        model: A LLaVA model.
        folder: Where to.
        weights: What to save, with the names of the model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    torch.save(weights, folder / PROJECTOR_FILE)


def save_lora(model: Any, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write config.json, the adapter, and ``non_lora_trainables.bin`` for what is new beside it.

    Args:
        model: peft's wrapper around a LLaVA model.
        folder: Where to.
        weights: The adapter's and the others to save, with the names of the wrapper.
    """
    folder.mkdir(parents=True, exist_ok=True)
    adapter = {name: tensor for name, tensor in weights.items() if LORA in name}
    # "auto" would ask the model hub whether the base's embeddings have the same size.
    model.save_pretrained(str(folder), state_dict=adapter, save_embedding_layers=False)
    drop_new_keys(folder)
    config = deepcopy(model.config)
    # The base's weights are stored as they were; whether to quantize them is for who loads them to say, and
    # only how they were quantized is told.
    quantization = config.__dict__.pop("quantization_config", None)
    for key in QUANTIZATION_KEYS if quantization is not None else ():
        setattr(config, key, getattr(quantization, key))
    config.save_pretrained(folder)
    beside = {name: tensor for name, tensor in weights.items() if LORA not in name}
    torch.save(beside, folder / NON_LORA_FILE)
    share_weights(folder)


def load_parts(model: nn.Module, path: Path) -> None:
    """Read back what `save_projector` wrote, or `save_lora` beside the adapter.

    Raises:
        MissingFileError: If it is not there.
        UserError: If it does not fit the model.
    """
    stored = read_tensors(path)
    unexpected = check_learned(model, stored, path)
    if unexpected:
        raise UserError(f"{path} holds {min(unexpected)!r}, which the model has not")
    model.load_state_dict(stored, strict=False)


def check_learned(model: nn.Module, stored: Mapping[str, StoredWeight], path: Path) -> set[str]:
    """Make sure that a checkpoint has all that a run trains, but for an adapter: see `check_adapter`.

    Args:
        model: Of the run.
        stored: Weights of the checkpoint.
        path: Where they are, for messages.

    Returns:
        Names of stored weights of which the model has none.

    Raises:
        UserError: If some are missing, of another shape or no numbers with a fraction.
    """
    surplus = refuse_other_shapes(model.state_dict(), shapes_of(stored), f"{path} does not fit the model")
    refuse_other_types(dtypes_of(stored), stored.keys() - surplus, path)
    learned = {name for name, one in model.named_parameters() if one.requires_grad and LORA not in name}
    lacking = learned - stored.keys()
    if lacking:
        raise UserError(f"{path} lacks {len(lacking)} of the weights that learn, the first is {min(lacking)}")
    return surplus


def moved_projector(folder: Path) -> Path:
    """Return where the projector of a run goes whose output folder is itself named ``checkpoint-*``."""
    return folder.parent / "mm_projector" / f"{folder.name}.bin"


def save_final(trainer: Any) -> None:
    """Write the result of a run into its output folder: a full checkpoint, or what of it was trained.

    As in LLaVA, the projector of a run whose output folder is itself named ``checkpoint-*`` goes to
    ``mm_projector/<name>.bin`` beside that folder.
    """
    folder = Path(trainer.args.output_dir)
    trainer.save_state()
    used_cache, trainer.model.config.use_cache = trainer.model.config.use_cache, True
    learned_whole = trainer.args.saves is CheckpointKind.FULL and not trainer.is_deepspeed_enabled
    if learned_whole and trainer.args.compute_dtype != torch.float32:
        _save_rounded(trainer, folder)
    else:
        trainer.save_model(str(folder))
    trainer.model.config.use_cache = used_cache
    projector = folder / PROJECTOR_FILE
    if trainer.args.should_save and folder.name.startswith("checkpoint-") and projector.is_file():
        target = moved_projector(folder)
        target.parent.mkdir(exist_ok=True)
        projector.replace(target)


def _save_rounded(trainer: Any, folder: Path) -> None:
    """Write the model in the dtype that it computes in: float32 was for the optimizer's small steps.

    The model keeps its weights, of which a checkpoint may still be written.
    """
    if not trainer.args.should_save:
        return
    dtype = trainer.args.compute_dtype
    weights = trainer.model.state_dict()
    trainer._save(
        str(folder),
        {name: one.to("cpu", dtype) if one.is_floating_point() else one for name, one in weights.items()},
    )
    config = deepcopy(trainer.model.config)
    config.dtype = dtype  # in place of that of the model
    config.save_pretrained(folder)
