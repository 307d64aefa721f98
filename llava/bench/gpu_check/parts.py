"""The parts of the check as values, and what one part may say instead of results."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from llava.bench.gpu_check.sizes import Size
from llava.eval.free_memory import free_bytes

Row = dict[str, Any]
"""One line of results, of what JSON can hold."""
Run = Callable[[torch.device, Size], Iterator[Row]]
"""Measures, and gives back a row as soon as there is one, so that nothing is lost when the time is over."""

CLIP_BYTES = 2**30  # of ViT-L/14-336 in 16 bits, with room
OUT_OF_MEMORY = "the device's memory does not suffice"


class SkippedError(Exception):
    """This machine lacks what a part needs; the message says what."""


class UnmetError(Exception):
    """A part measured all it was to measure, and found something that must not be."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the check, which runs in a process of its own.

    Attributes:
        name: On the command line and in the results.
        title: Of its table.
        target: Module and function (a `Run`), joined by a colon; imported by its process only.
        limit_s: Seconds after which it is ended, in full size.
    """

    name: str
    title: str
    target: str
    limit_s: float


HERE = __package__
# On an H200 they took 36, 22, 16, 78, 29, 23, 52 and 86 s, about 6 minutes together.
PARTS = (
    Part("agreement", "Agreement with the published code", f"{HERE}.agreement:run", 60),
    Part("flips", "What rounding decides otherwise", f"{HERE}.rounding:run", 80),
    Part("selection", "Selection", f"{HERE}.selection:run", 30),
    Part("inference", "Inference", f"{HERE}.inference:run", 170),
    Part("graphs", "CUDA graphs, off and on", f"{HERE}.graphs:run", 60),
    Part("training", "A training step", f"{HERE}.training:run", 50),
    Part("loading", "Loading", f"{HERE}.loading:run", 80),
    Part("bundled", "The bundled model", f"{HERE}.bundled:run", 150),
)


def find_run(target: str) -> Run:
    """Import what a part's ``target`` names."""
    module, _, function = target.partition(":")
    return getattr(import_module(module), function)


def require_package(name: str) -> None:
    """Skip a part that needs a package.

    Raises:
        SkippedError: If it is not installed.
    """
    if find_spec(name) is None:
        raise SkippedError(f"{name} is not installed")


def require_bfloat16(device: torch.device) -> torch.dtype:
    """Return bfloat16, in which parts with random weights compute.

    Raises:
        SkippedError: If the device has no such type.
    """
    if device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise SkippedError(f"{torch.cuda.get_device_name(device)} has no bfloat16")
    return torch.bfloat16


def require_memory(device: torch.device, needed: float) -> None:
    """Skip what needs more bytes than a device has free, before anything else runs out of them.

    Raises:
        SkippedError: If it has not.
    """
    require_bytes(f"{device.type} memory", needed, free_bytes(device))


def require_bytes(what: str, needed: float, free: float) -> None:
    """Skip what needs more bytes of something than are free.

    Raises:
        SkippedError: If they do not suffice.
    """
    if free < needed:
        raise SkippedError(f"{needed / 2**30:.0f} GiB of {what} are needed, {free / 2**30:.0f} are free")


def release(device: torch.device) -> None:
    """Give back the memory of models that are not used any more, which refer to themselves in circles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
