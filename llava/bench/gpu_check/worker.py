"""One part in a process of its own: a line of JSON per row, and a last one that says how it ended."""

from __future__ import annotations

import argparse
import json
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from llava.bench.gpu_check.parts import OUT_OF_MEMORY, SkippedError, UnmetError, find_run
from llava.bench.gpu_check.sizes import SIZES
from llava.bench.machine import ROOT

TRACEBACK_LINES = 12


def main(arguments: list[str] | None = None) -> None:
    """Run the part that the command line names, and append what it finds to a file."""
    parser = argparse.ArgumentParser(prog="python -m llava.bench.gpu_check.worker")
    parser.add_argument("target")
    parser.add_argument("output", type=Path)
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args(arguments)
    size = SIZES[options.size]
    torch.set_num_threads(size.threads)
    use_float32()
    with options.output.open("a", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        try:
            for row in find_run(options.target)(torch.device(options.device), size):
                write({"row": row})
            write({"status": "done"})
        except SkippedError as reason:
            write({"status": "skipped", "message": str(reason)})
        except torch.OutOfMemoryError:
            write({"status": "skipped", "message": OUT_OF_MEMORY})
        except UnmetError as finding:
            write({"status": "failed", "message": str(finding)})
        except Exception as error:  # noqa: BLE001 - whatever it is, the other parts run and the results have it
            write({"status": "failed", "message": f"{type(error).__name__}: {error}", **_last_lines()})


def use_float32() -> None:
    """Let float32 be float32 on CUDA too, where PyTorch rounds the inputs of convolutions to 10 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of PyTorch have other names, which older ones lack
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def _last_lines() -> dict[str, Any]:
    """Return the end of the traceback of the error at hand, with paths from the repository's root."""
    text = traceback.format_exc().strip().replace(f"{ROOT}/", "")
    return {"traceback": text.splitlines()[-TRACEBACK_LINES:]}


if __name__ == "__main__":
    main()
