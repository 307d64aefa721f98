"""``llava reducers``: what may reduce an image's tokens, where it was published, what it reads."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``llava reducers``."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> None:
    """List all token reductions."""
    from llava.markdown import markdown_table
    from llava.model.multimodal_encoder.reducers.registry import describe

    rows = describe()
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    header = list(rows[0])
    print(markdown_table(header, [[row[name] for name in header] for row in rows]))
    print(
        "Behind the colon stands a number of tokens, to which TRIM and some others add one for the rest, a "
        "share of the patches (0 to 1), or -1 where the method has a rule of its own. What each does: "
        "docs/methods.md."
    )
