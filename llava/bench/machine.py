"""What results depend on besides the code: the card, its driver, versions, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from llava import __version__
from llava.eval.free_memory import free_bytes
from llava.model.placement import choose_attention

ROOT = Path(__file__).parents[2]
COMMIT_VARIABLE = "GPU_CHECK_COMMIT"  # for copies of the repository without its history
LIBRARIES = ("transformers", "accelerate", "peft", "flash-attn", "safetensors")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return card, driver, processors, memory and versions."""
    return {
        "card": card_name(device),
        "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cores": os.cpu_count(),
        "free_host_gib": round(free_bytes(torch.device("cpu")) / 2**30, 1),
        "free_device_gib": round(free_bytes(device) / 2**30, 1),
        "attention": choose_attention(device, torch.bfloat16),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{library: _version(library) for library in LIBRARIES},
        "llava": __version__,
        "commit": commit(),
    }


def card_name(device: torch.device) -> str:
    """Return what the device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type.upper()}, {os.cpu_count()} cores"


def slug(name: str) -> str:
    """Return a name as a file may have it: ``NVIDIA H100 80GB HBM3`` is ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit() -> str:
    """Return the commit of this code, as git or the environment says, else ``unknown``."""
    named = os.environ.get(COMMIT_VARIABLE)
    return named or _said_by("git", "-C", str(ROOT), "rev-parse", "HEAD") or "unknown"


def _said_by(*command: str) -> str | None:
    """Return the first line of what a program says, None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
