"""Write the difference between a model and its base: ``python -m llava.model.make_delta``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from llava.options import CommandParser
from llava.utils import exit_on_user_error


def make_delta(
    base_model_path: str, target_model_path: str, delta_path: str, hub_repo_id: str | None = None
) -> None:
    """Write the weights of a model less those of its base, in float16.

    Args:
        base_model_path: Folder or hub id of the language model.
        target_model_path: Folder or hub id of the model.
        delta_path: A new folder for the difference.
        hub_repo_id: Repository on the hub to upload it to.

    Raises:
        UserError: If a model is missing, they do not fit, or the result cannot be written.
    """
    from llava.model.delta import add_base, load_float16, save_float16
    from llava.model.saving import refuse_existing_model

    refuse_existing_model(Path(delta_path), "--delta-path")
    model, folder = load_float16(target_model_path)
    add_base(model, base_model_path, sign=-1)
    save_float16(model, folder, Path(delta_path))
    if hub_repo_id is not None:
        from huggingface_hub import HfApi

        HfApi().create_repo(hub_repo_id, exist_ok=True)
        HfApi().upload_folder(repo_id=hub_repo_id, folder_path=delta_path)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run `make_delta` as a command."""
    parser = CommandParser(prog="python -m llava.model.make_delta", description=__doc__)
    parser.add_argument("--base-model-path", required=True, help="the language model: folder or hub id")
    parser.add_argument("--target-model-path", required=True, help="the model: folder or hub id")
    parser.add_argument("--delta-path", required=True, help="a new folder for the difference")
    parser.add_argument("--hub-repo-id", help="repository on the hub to upload it to")
    make_delta(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
