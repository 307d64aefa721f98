"""Make a model of its base and the difference to it: ``python -m llava.model.apply_delta``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.options import CommandParser
from llava.utils import exit_on_user_error


def apply_delta(base_model_path: str, target_model_path: str, delta_path: str) -> None:
    """Write the model whose difference to a base was published, in float16.

    Args:
        base_model_path: Folder or hub id of the language model.
        target_model_path: A new folder for the model.
        delta_path: Folder or hub id of the difference.

    Raises:
        UserError: If a model is missing, they do not fit, or the result cannot be written.
    """
    from llava.model.delta import add_base, load_float16, save_float16
    from llava.model.saving import refuse_existing_model

    refuse_existing_model(Path(target_model_path), "--target-model-path")
    model, folder = load_float16(delta_path)
    add_base(model, base_model_path, sign=1)
    save_float16(model, folder, Path(target_model_path))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run `apply_delta` as a command."""
    parser = CommandParser(prog="python -m llava.model.apply_delta", description=__doc__)
    parser.add_argument("--base-model-path", required=True, help="the language model: folder or hub id")
    parser.add_argument("--target-model-path", required=True, help="a new folder for the model")
    parser.add_argument("--delta-path", required=True, help="the difference: folder or hub id")
    apply_delta(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
