"""How fast a stage could be: its work over what the device was measured to copy and to multiply.

A floor counts what cannot be avoided: every weight is read once per pass, inputs and the cache are read and
written once, and only multiplications of matrices take time. The larger of the two times binds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from llava.engine.stopwatch import Stopwatch

RATE_REPEATS = 5
CALLS = 5  # one after the other per repeat, so that launching them is hidden


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage must do at least.

    Attributes:
        moved: Bytes read and written.
        flops: Floating-point operations of matrix products; a multiplication with an addition is two.
    """

    moved: float = 0.0
    flops: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Do both."""
        return Work(self.moved + other.moved, self.flops + other.flops)


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device was measured to do.

    Attributes:
        moved: Bytes per second, read and written, of a large copy.
        flops: Floating-point operations per second of a large matrix product.
    """

    moved: float
    flops: float

    def floor(self, work: Work) -> tuple[float, str]:
        """Return the least milliseconds that some work takes, and what binds: ``memory`` or ``compute``."""
        memory, compute = 1000 * work.moved / self.moved, 1000 * work.flops / self.flops
        return (memory, "memory") if memory >= compute else (compute, "compute")

    def beside(self, milliseconds: float, work: Work | None) -> dict[str, Any]:
        """Return a figure with its floor, what binds, and their ratio; alone where there is no floor."""
        if work is None or work == Work():
            return {"ms": milliseconds}
        floor, bound = self.floor(work)
        return {"ms": milliseconds, "floor_ms": floor, "bound": bound, "ratio": milliseconds / floor}


def measure_rates(device: torch.device, dtype: torch.dtype, copy_mib: int, side: int) -> Rates:
    """Measure the rates of a copy and of a product of square matrices.

    Args:
        device: Where.
        dtype: Of both.
        copy_mib: MiB that are copied; more than the caches of the device.
        side: Of the matrices.
    """
    return Rates(_copy_rate(device, dtype, copy_mib), product_rate(device, dtype, side))


def _copy_rate(device: torch.device, dtype: torch.dtype, mib: int) -> float:
    source = torch.zeros(mib * 2**20 // dtype.itemsize, dtype=dtype, device=device)
    target = torch.empty_like(source)
    milliseconds = median_ms(device, lambda: target.copy_(source), calls=CALLS, repeats=RATE_REPEATS)
    return 1000 * 2 * source.nbytes / milliseconds


def product_rate(device: torch.device, dtype: torch.dtype, side: int, repeats: int = RATE_REPEATS) -> float:
    """Measure FLOPs per second of a product of two square matrices.

    Args:
        device: Where.
        dtype: Of both.
        side: Of both.
        repeats: Rounds of several products, of which the median counts.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    milliseconds = median_ms(device, lambda: left @ right, calls=CALLS, repeats=repeats)
    return 1000 * 2 * side**3 / milliseconds


def median_ms(device: torch.device, call: Callable[[], Any], *, calls: int, repeats: int) -> float:
    """Return the milliseconds of one call: the median of rounds of ``calls`` calls, after one to warm up."""
    laps = []
    for _ in range(repeats + 1):
        watch = Stopwatch(device)
        for _ in range(calls):
            call()
        laps.append(watch.lap() / calls)
    return median(laps[1:])
