"""Write a full checkpoint anew in float16 and safetensors: ``python -m llava.model.consolidate``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.options import CommandParser
from llava.utils import exit_on_user_error


def consolidate_ckpt(src_path: str, dst_path: str) -> None:
    """Load a full checkpoint in float16 and save it with its tokenizer.

    Args:
        src_path: Folder or hub id.
        dst_path: A new folder.

    Raises:
        UserError: If the checkpoint is missing or damaged, or the result cannot be written.
    """
    from llava.model.delta import load_float16, save_float16
    from llava.model.saving import refuse_existing_model

    refuse_existing_model(Path(dst_path), "--dst")
    model, folder = load_float16(src_path)
    save_float16(model, folder, Path(dst_path))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run `consolidate_ckpt` as a command."""
    parser = CommandParser(prog="python -m llava.model.consolidate", description=__doc__)
    parser.add_argument("--src", required=True, help="the checkpoint: folder or hub id")
    parser.add_argument("--dst", required=True, help="a new folder for the result")
    options = parser.parse_args(argv)
    consolidate_ckpt(options.src, options.dst)


if __name__ == "__main__":
    sys.exit(main())
