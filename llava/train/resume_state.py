"""What a run resumes from beside its weights, compared with what the run has before any of it is taken over.

The trainer and the libraries below it take these files over as they are, whatever is in them.
"""

from __future__ import annotations

import math
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals

from llava.errors import UserError, shown
from llava.model.checkpoint_configs import COUNT, FLAG, NUMBER, POSITIVE, TEXT, WHOLE, Kind, pick
from llava.model.checkpoint_files import open_pickle, own_file, read_config

OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))
STATE_KEYS: dict[str, Kind] = {
    "global_step": ("a whole number, 0 or more", lambda value: WHOLE[1](value) and value >= 0),
    **dict.fromkeys(("max_steps", "num_train_epochs", "train_batch_size"), COUNT),
    **dict.fromkeys(("best_global_step", "num_input_tokens_seen"), WHOLE),
    **dict.fromkeys(
        ("epoch", "best_metric", "total_flos", "logging_steps", "eval_steps", "save_steps"), NUMBER
    ),
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), FLAG),
    **dict.fromkeys(("best_model_checkpoint", "trial_name"), TEXT),
    **dict.fromkeys(("trial_params", "stateful_callbacks"), OBJECT),
    "log_history": (
        "a list of objects",
        lambda value: isinstance(value, list) and all(isinstance(line, dict) for line in value),
    ),
}
NEEDED_KEYS = ("global_step", "max_steps", "log_history")
SCALER_KEYS: dict[str, Kind] = {
    **dict.fromkeys(("scale", "growth_factor", "backoff_factor"), POSITIVE),
    "growth_interval": COUNT,
    "_growth_tracker": WHOLE,
}
# Of PyTorch's Adam, by parameter; True where the shape is the parameter's.
ADAM_STATE = {"step": False, "exp_avg": True, "exp_avg_sq": True}
# What the state of an optimizer or of a schedule has in all versions of PyTorch; the rest has its default.
NEEDED_STATE = {
    *ADAM_STATE,
    "params",
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "last_epoch",
    "base_lrs",
    "_last_lr",
}


def check_resume_state(checkpoint: Path, with_deepspeed: bool) -> None:
    """Make sure of what can be known before the model is there; see `check_optimizer` for the rest.

    Args:
        checkpoint: A whole one.
        with_deepspeed: Whether the run is under DeepSpeed, which keeps the optimizer in files of its own.

    Raises:
        UserError: If a file is damaged or missing, or says what cannot be.
    """
    _check_trainer_state(checkpoint)
    for path in sorted(checkpoint.glob("rng_state*.pth")):
        _check_random_state(path)
    if own_file(checkpoint, SCALER_NAME):
        path = checkpoint / SCALER_NAME
        values = _read_object(path)
        lacking = SCALER_KEYS.keys() - pick(values, SCALER_KEYS, path, "state of a gradient scaler").keys()
        if lacking:
            raise UserError(f"{path} lacks {', '.join(sorted(lacking))}")
    for name in (SCHEDULER_NAME,) if with_deepspeed else (OPTIMIZER_NAME, SCHEDULER_NAME):
        if own_file(checkpoint, name) is None:
            raise UserError(
                f"{checkpoint} has no {name}, without which a run does not go on as it would have; "
                "--save_only_model True leaves it out"
            )
        _read_object(checkpoint / name)
    if with_deepspeed:
        check_shares(checkpoint)


def check_shares(checkpoint: Path) -> None:
    """Make sure that DeepSpeed's files are whole, as far as that is seen without reading them.

    Raises:
        UserError: If one is not.
    """
    latest = own_file(checkpoint, "latest")
    name = "" if latest is None else latest.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"global_step\d+", name) or not (checkpoint / name).is_dir():
        raise UserError(f"{checkpoint / 'latest'} does not name a folder of DeepSpeed's in the checkpoint")
    for path in sorted((checkpoint / name).glob("*.pt")):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is damaged: it is not as PyTorch writes it")


def _check_trainer_state(checkpoint: Path) -> None:
    """Make sure that the trainer's own state is one, of the step for which the checkpoint is named.

    Raises:
        UserError: If it is not.
    """
    path = checkpoint / TRAINER_STATE_NAME
    values = read_config(checkpoint, TRAINER_STATE_NAME)
    known = pick(values, STATE_KEYS, path, "state of a trainer")
    unknown = sorted(values.keys() - STATE_KEYS.keys())
    lacking = [name for name in NEEDED_KEYS if name not in known]
    if unknown or lacking:
        wrong = f"has the unknown key {shown(unknown[0])}" if unknown else f"lacks {', '.join(lacking)}"
        raise UserError(f"{path} is not a valid state of a trainer: it {wrong}")
    named = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    if named and int(named[1]) != known["global_step"]:
        raise UserError(
            f"{path} says that global_step is {known['global_step']}, and the checkpoint is of {named[1]}"
        )


def _read_object(path: Path) -> dict[Any, Any]:
    """Read a pickle that holds a dictionary of plain values and tensors.

    Raises:
        UserError: If it is damaged or holds anything else.
    """
    values = open_pickle(path)
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a dictionary")
    return values


def _check_random_state(path: Path) -> None:
    """Make sure that generators of random numbers accept their states.

    Raises:
        UserError: If one does not.
    """
    own_file(path.parent, path.name)
    with safe_globals():
        values = _read_object(path)
    for name, accept in (
        ("python", random.Random().setstate),
        ("numpy", np.random.RandomState().set_state),
        ("cpu", torch.Generator().set_state),
    ):
        try:
            accept(values[name])
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise UserError(f"{path} holds no state of the generator {name!r}: {error}") from None


def check_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Make sure that a checkpoint's optimizer is that of the run.

    Args:
        checkpoint: Of a run without DeepSpeed.
        optimizer: The run's, in whose place the stored one will be.

    Raises:
        UserError: If its file is damaged, or is of other parameters or of another kind.
    """
    path = checkpoint / OPTIMIZER_NAME
    stored = _read_object(path)
    _refuse_unlike(stored.get("param_groups"), optimizer.state_dict()["param_groups"], path, "param_groups")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = stored.get("state")
    if not isinstance(states, dict) or any(
        not WHOLE[1](index) or not 0 <= index < len(parameters) or not isinstance(state, dict)
        for index, state in states.items()
    ):
        raise UserError(f"{path} does not hold a state for each of {len(parameters)} parameters")
    if type(getattr(optimizer, "optimizer", optimizer)) in (torch.optim.Adam, torch.optim.AdamW):
        for index, state in states.items():
            scalar = torch.zeros(())
            own = {name: parameters[index] if same else scalar for name, same in ADAM_STATE.items()}
            _refuse_unlike(state, own, path, f"state[{index}]")


def check_scheduler(checkpoint: Path, scheduler: Any) -> None:
    """Make sure that a checkpoint's schedule of rates is one for the run's parameters.

    Args:
        checkpoint: A whole one.
        scheduler: The run's, in whose place the stored one will be.

    Raises:
        UserError: If its file is damaged, or is of another kind of schedule.
    """
    path = checkpoint / SCHEDULER_NAME
    stored = _read_object(path)
    # All of it becomes attributes, and a method is none of a schedule's state.
    if overwritten := sorted(name for name in stored if callable(getattr(type(scheduler), str(name), None))):
        raise UserError(f"{path} is not of this run: it has {shown(overwritten[0])}")
    _refuse_unlike(stored, scheduler.state_dict(), path, "it")


def _refuse_unlike(stored: Any, own: Any, path: Path, where: str) -> None:
    """Refuse a state that is not built as the run's own: other lengths, shapes or kinds, or keys missing.

    Args:
        stored: The state, or a part of it.
        own: The run's.
        path: The file, for messages.
        where: The part, for messages.

    Raises:
        UserError: If it is not.
    """
    if not _is_alike(stored, own):
        raise UserError(f"{path} is not of this run: {where} is {_kind(stored)}, and here {_kind(own)}")
    if isinstance(own, Mapping):
        for name in own.keys() & stored.keys():
            _refuse_unlike(stored[name], own[name], path, f"{where}[{name!r}]")
    elif isinstance(own, list | tuple):
        for index, (one, other) in enumerate(zip(stored, own, strict=True)):
            _refuse_unlike(one, other, path, f"{where}[{index}]")


def _is_alike(stored: Any, own: Any) -> bool:
    """Tell whether two values are of one kind, not looking at what is in them."""
    if isinstance(own, Mapping):
        return isinstance(stored, dict) and not (own.keys() & NEEDED_STATE) - stored.keys()
    if isinstance(own, list | tuple):
        return isinstance(stored, list | tuple) and len(stored) == len(own)
    if isinstance(own, Tensor):
        return isinstance(stored, Tensor) and stored.shape == own.shape
    if stored is None or own is None:  # a setting that is left to the library
        return True
    if isinstance(own, int | float) and not isinstance(own, bool):
        is_number = isinstance(stored, int | float) and not isinstance(stored, bool)
        return is_number and not (isinstance(stored, float) and math.isnan(stored))
    return isinstance(stored, type(own))


def _kind(value: Any) -> str:
    """Say in words what `_is_alike` compares."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"an object with {shown(sorted(map(str, value)))}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return shown(value)
