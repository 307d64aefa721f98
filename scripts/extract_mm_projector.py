"""Copy the projector of a LLaVA checkpoint into a file of its own, as --pretrain_mm_mlp_adapter reads it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from llava.errors import UserError
from llava.model.checkpoint_files import iterate_weights, resolve_folder, weight_files
from llava.options import CommandParser
from llava.utils import exit_on_user_error, refuse_overwriting


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run `extract_projector` as a command, and list what was copied."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model-path", required=True, help="a full checkpoint: folder or hub id")
    parser.add_argument("--output", required=True, type=Path, help="file to write, such as mm_projector.bin")
    arguments = parser.parse_args(argv)
    for name, tensor in extract_projector(arguments.model_path, arguments.output).items():
        print(f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")


def extract_projector(model_path: str, output: Path) -> dict[str, torch.Tensor]:
    """Write the tensors of a checkpoint's projector, with the names that they have in the model.

    Args:
        model_path: Folder or hub id of a full checkpoint.
        output: File to write; its folder is made if need be.

    Returns:
        What was written.

    Raises:
        MissingFileError: If the checkpoint or its weights are missing.
        UserError: If there is no projector in them, or the file cannot be written.
    """
    folder = resolve_folder(model_path)
    refuse_overwriting("--output", output, *weight_files(folder))
    # Copied, because a tensor may share a larger storage, which would be saved with it.
    tensors = {name: value.clone() for name, value in iterate_weights(folder) if "mm_projector" in name}
    if not tensors:
        raise UserError(f"{folder} is not a LLaVA checkpoint: no weights are named mm_projector")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb") as file:
            torch.save(tensors, file)
    except OSError as error:
        raise UserError(f"the projector cannot be written to {str(output)!r}: {error.strerror}") from error
    return tensors


if __name__ == "__main__":
    sys.exit(main())
