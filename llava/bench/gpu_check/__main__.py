"""``python -m llava.bench.gpu_check``: every part in turn, results written after each."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import ArgumentTypeError
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llava.bench.gpu_check.parts import PARTS, Part
from llava.bench.gpu_check.sizes import SIZES
from llava.bench.gpu_check.supervise import run_part
from llava.bench.gpu_check.tables import SCHEMA, tables
from llava.bench.machine import describe_machine, slug
from llava.bench.results import free_path, write_results
from llava.model.placement import parse_device
from llava.options import CommandParser
from llava.utils import exit_on_user_error

BAD = ("failed", "timeout")


def named_parts(text: str) -> tuple[Part, ...]:
    """Read the names of parts, joined by commas.

    Raises:
        argparse.ArgumentTypeError: If there is no such part.
    """
    known = {part.name: part for part in PARTS}
    names = text.split(",")
    for name in names:
        if name not in known:
            raise ArgumentTypeError(f"no part {name!r}; accepted: {', '.join(known)}, joined by commas")
    return tuple(known[name] for name in names)


@exit_on_user_error
def main(arguments: list[str] | None = None) -> int:
    """Measure what a GPU shows; a part that fails does not keep the others from running."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = CommandParser(prog="scripts/gpu_check.sh", description=main.__doc__)
    parser.add_argument(
        "out", nargs="?", type=Path, default=Path("results/gpu_check"), help="folder of the results"
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="full",
        help="full takes about 6 minutes on an H200, at most 12 (default: full)",
    )
    parser.add_argument("--parts", type=named_parts, default=PARTS, help="joined by commas (default: all)")
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one of this machine)")
    options = parser.parse_args(arguments)
    device = parse_device(options.device)
    # Results are published, and where they were written to is nobody's concern.
    published = [argument for argument in arguments if Path(argument) != options.out]
    now = datetime.now(timezone.utc)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "date": now.isoformat(timespec="seconds"),
        "command": shlex.join(["bash", "scripts/gpu_check.sh", *published]),
        "size": options.size,
        "machine": describe_machine(device),
        "parts": {},
    }
    path = free_path(options.out, f"{slug(document['machine']['card'])}-{now:%Y-%m-%d}")
    for part in options.parts:
        print(f"{part.name} ...", flush=True)
        found = run_part(part, options.size, str(device))
        document["parts"][part.name] = found
        write_results(path, json.dumps(document, indent=1) + "\n", tables(document))
        message = f": {found['message']}" if "message" in found else ""
        print(f"{part.name} {found['status']} in {found['seconds']} s{message}", flush=True)
    print(f"written: {path} and {path.with_suffix('.md')}")
    return int(any(found["status"] in BAD for found in document["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
