"""Loading a checkpoint from local disk, against reading its bytes.

``python -m llava.bench.gpu_check.loading FOLDER DEVICE`` loads one in a process of its own and prints its
seconds and the peak of its memory.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from llava.assistant import Assistant, bundled_checkpoint
from llava.bench.gpu_check.parts import CLIP_BYTES, Row, release, require_bytes, require_memory
from llava.bench.gpu_check.sizes import Size
from llava.bench.memory import peak_host_bytes
from llava.bench.random_clip import write_random_clip
from llava.bench.random_llava import language_model_bytes, random_language_model
from llava.engine.stopwatch import Stopwatch
from llava.model.vision_settings import VisionSettings
from llava.tokenizer import load_tokenizer

DTYPE = torch.float16
SLACK = 1.3  # of what the weights take, on disk and in memory
CHUNK = 16 * 2**20


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Write a checkpoint, read its bytes, and load it.

    Raises:
        SkippedError: If the disk or the memory of this machine is too small.
    """
    with tempfile.TemporaryDirectory() as folder:
        needed = SLACK * (language_model_bytes(size.first_language_model, DTYPE) + CLIP_BYTES)
        require_bytes("disk", needed, shutil.disk_usage(folder).free)
        require_memory(torch.device("cpu"), needed)
        require_memory(device, needed)
        checkpoint = write_checkpoint(Path(folder), size, device)
        release(device)
        files = sorted(Path(folder).rglob("*.safetensors"))
        seconds = read_seconds(files)
        weights = sum(path.stat().st_size for path in files)
        loaded = load_apart(checkpoint, device)
        yield {
            "dtype": "float16",
            "gib": weights / 2**30,
            "page_cache": "holds the files, which were written just before",
            "read_s": seconds,
            **loaded,
            "ratio": loaded["load_s"] / seconds,
            "peak_share": loaded["peak_host_mib"] * 2**20 / weights,
        }


def write_checkpoint(folder: Path, size: Size, device: torch.device) -> Path:
    """Write a checkpoint with random weights, with as many embeddings as tokens, and its CLIP beside it."""
    tokenizer = load_tokenizer(bundled_checkpoint())
    sizes = {**size.first_language_model, "vocab_size": len(tokenizer)}
    clip = write_random_clip(folder / "clip", size.clip, device=device)
    model = random_language_model(sizes, device, DTYPE)
    model.get_model().add_vision(VisionSettings(str(clip), token_reduction="TRIM:-1"))
    model.save_pretrained(folder / "llava")
    tokenizer.save_pretrained(folder / "llava")
    return folder / "llava"


def read_seconds(files: list[Path]) -> float:
    """Return the seconds that it takes to read files into memory, a piece at a time."""
    buffer = bytearray(CHUNK)
    began = time.perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


def load_apart(checkpoint: Path, device: torch.device) -> dict[str, float]:
    """Load a checkpoint in a process of its own, whose memory holds nothing else."""
    command = [sys.executable, "-m", __name__, str(checkpoint), str(device)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str]) -> None:
    """Load a checkpoint once and print what it took."""
    folder, device = arguments[0], torch.device(arguments[1])
    torch.ones(1, device=device)  # a device takes seconds to begin with
    before = peak_host_bytes()
    watch = Stopwatch(device)
    Assistant.load(folder, device=str(device), dtype=DTYPE)
    seconds = watch.lap() / 1000
    print(
        json.dumps(
            {
                "load_s": seconds,
                "peak_host_mib": peak_host_bytes() / 2**20,
                "host_mib_before": before / 2**20,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
