"""How much a run writes, and whether the disk holds it: asked before it trains and before each checkpoint."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.errors import UserError
from llava.model.checkpoint_files import CheckpointKind

logger = logging.getLogger(__name__)

# Bytes of an optimizer's state per trained weight: Adam's two float32 numbers; DeepSpeed stores the weight in
# float32 too.
OPTIMIZER_BYTES = 8
DEEPSPEED_BYTES = 12
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large files of a run become, in bytes.

    Attributes:
        result: Of what it leaves in the output folder at the end.
        checkpoint: Of one checkpoint.
    """

    result: int
    checkpoint: int


def sizes_of(trainer: Any) -> Sizes:
    """Estimate how large the result and a checkpoint become."""
    args = trainer.args
    parameters = list(trainer.model.parameters())
    trained = sum(_count(one) for one in parameters if one.requires_grad)
    if args.saves is CheckpointKind.FULL:
        weights = sum(_count(one) * one.element_size() for one in parameters)
        itemsize = torch.empty((), dtype=args.compute_dtype).element_size()
        result = sum(_count(one) * min(one.element_size(), itemsize) for one in parameters)
    else:
        weights = result = sum(_count(one) * one.element_size() for one in parameters if one.requires_grad)
    state = trained * (DEEPSPEED_BYTES if trainer.is_deepspeed_enabled else OPTIMIZER_BYTES)
    return Sizes(result, weights + state)


def free_bytes(folder: str | Path) -> int:
    """Return how much can still be written where a folder is."""
    return shutil.disk_usage(folder).free


def check_space(folder: str | Path, sizes: Sizes, *, with_checkpoints: bool) -> None:
    """Make sure before a run that its result can be written; warn if no checkpoint can.

    Args:
        folder: The output folder.
        sizes: Of the run's files.
        with_checkpoints: Whether it writes any.

    Raises:
        UserError: If there is no space for the result.
    """
    free = free_bytes(folder)
    if free < sizes.result:
        raise UserError(
            f"the result takes about {_gib(sizes.result)}, and {str(folder)!r} has {_gib(free)} left: "
            "make space, or choose another --output_dir"
        )
    if with_checkpoints and free < sizes.result + sizes.checkpoint:
        logger.warning(
            "a checkpoint takes about %s and the result %s, and %r has %s left: unless it gets "
            "more, no checkpoint is written, and the run cannot be resumed",
            *(_gib(sizes.checkpoint), _gib(sizes.result), str(folder), _gib(free)),
        )


def lacks_space(folder: str | Path, sizes: Sizes, *, result_is_written: bool) -> str | None:
    """Say why a checkpoint is not written now: the result must still fit; None if both do."""
    free, needed = free_bytes(folder), sizes.checkpoint + (0 if result_is_written else sizes.result)
    if free >= needed:
        return None
    return f"it takes about {_gib(sizes.checkpoint)}, and {_gib(free)} are left" + (
        "" if result_is_written else f", of which the result needs {_gib(sizes.result)}"
    )


def _count(parameter: Any) -> int:
    """Return how many numbers a weight has, also where DeepSpeed has split it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _gib(count: int) -> str:
    return f"{count / GIB:.3g} GiB"
