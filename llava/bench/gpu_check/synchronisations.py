"""Where the host waits for its device, as PyTorch's debug mode for CUDA reports it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from llava.bench.machine import ROOT

SIGN = "called a synchronizing CUDA operation"


def count_synchronisations(device: torch.device, work: Callable[[], object]) -> list[str] | None:
    """Return the line of every operation that made the host wait while ``work`` ran, in their order.

    Only operations of PyTorch are seen, and `torch.cuda.synchronize` is not among them.

    Args:
        device: Where it works.
        work: Run once.

    Returns:
        ``file:line`` each, in this repository as a path from its root; None where it is not CUDA.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return [source_line(one.filename, one.lineno) for one in caught if SIGN in str(one.message)]


def source_line(file: str, line: int) -> str:
    """Name a line by its path from this repository's root, or from the folder of packages it is in."""
    path = Path(file)
    if path.is_relative_to(ROOT):
        return f"{path.relative_to(ROOT)}:{line}"
    _, found, inside = file.rpartition("site-packages/")
    return f"{inside if found else path.name}:{line}"
