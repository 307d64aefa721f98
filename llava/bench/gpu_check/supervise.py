"""Runs a part in a process of its own, and ends it, and all that it started, when its time is over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from llava.bench.gpu_check.parts import Part
from llava.bench.gpu_check.sizes import SIZES
from llava.bench.machine import ROOT

OUTPUT_LINES = 12  # of what a process said that died without a word about why


def run_part(part: Part, size: str, device: str) -> dict[str, Any]:
    """Run a part and return its status, seconds and rows.

    Args:
        part: What to run.
        size: Name of a `Size`.
        device: As PyTorch names it.

    Returns:
        ``status`` (``done``, ``failed``, ``skipped``, ``timeout``), ``seconds``, ``results`` and, unless it
        is done, a ``message``. What a part found before it failed or was ended is among the results.
    """
    limit_s = part.limit_s * SIZES[size].patience
    with tempfile.TemporaryDirectory() as folder:
        lines, said = Path(folder) / "rows.jsonl", Path(folder) / "output.txt"
        command = [sys.executable, "-m", "llava.bench.gpu_check.worker", part.target, str(lines)]
        command += ["--size", size, "--device", device]
        # Its own temporary files are in the folder too, so that they go when it is ended.
        began = time.monotonic()
        ending = run_within(command, limit_s, said, {**os.environ, "TMPDIR": folder})
        seconds = round(time.monotonic() - began, 1)
        written = [json.loads(line) for line in _whole_lines(lines)]
        found = [line["row"] for line in written if "row" in line]
        ended = next((line for line in written if "status" in line), None)
        if ended is None and ending is None:
            ended = {"status": "timeout", "message": f"ended after its limit of {limit_s:g} s"}
        elif ended is None:
            # Killed from outside, or by a crash below Python.
            output = said.read_text(encoding="utf-8", errors="replace").splitlines()[-OUTPUT_LINES:]
            message = f"its process ended with {ending} and said nothing"
            ended = {"status": "failed", "message": message, "traceback": output}
    return {**ended, "seconds": seconds, "limit_s": limit_s, "results": found}


def run_within(command: list[str], limit_s: float, said: Path, environment: dict[str, str]) -> int | None:
    """Return how a command ended, None if it was ended because its time was over."""
    with said.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # The group outlives its leader while it has a child left.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _whole_lines(path: Path) -> list[str]:
    """Return the lines of a file, without one that was still being written."""
    if not path.exists():
        return []
    return [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
