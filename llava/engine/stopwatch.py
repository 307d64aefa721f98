"""Time on a device that works behind the host's back."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Measures stretches of work on a device, in milliseconds."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = self._now()

    def lap(self) -> float:
        """Return the milliseconds since the last call, when the device has done all that it was given."""
        started, self._started = self._started, self._now()
        return (self._started - started) * 1000

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        elif self._device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()
