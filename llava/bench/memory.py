"""The most memory that some work takes, on a device or of the process."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")  # Linux alone has it
RESET = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # what sets the peak to what is resident now


class PeakMemory:
    """Watches the most memory that a device holds from now on; of a CPU, what is resident of the process.

    Args:
        device: Which.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_counted = device.type == "cuda"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            self._is_counted = _reset_host_peak()

    def bytes(self) -> int | None:
        """Return the peak since this was made, weights included; None where it is not counted."""
        if not self._is_counted:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return peak_host_bytes()

    def mib(self) -> float | None:
        """Return the same in MiB."""
        peak = self.bytes()
        return None if peak is None else peak / 2**20


def _reset_host_peak() -> bool:
    """Let the process's peak begin again; return whether that is possible here."""
    try:
        RESET.write_text(RESET_PEAK)
    except OSError:  # another system, or one that forbids it
        return False
    return True


def peak_host_bytes() -> int:
    """Return the most memory that this process has had, weights that are mapped from files included."""
    if STATUS.exists():  # the other figure counts the process that started this one
        (peak,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
