"""Merge a LoRA adapter into the model it was trained on, and save the result as a full checkpoint.

The weights keep the type in which the base stores them. CLIP's are not copied: the config names its folder.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from llava.errors import UserError
from llava.model.adapter import find_other_base
from llava.model.checkpoint_files import CheckpointKind, checkpoint_kind, iterate_weights, resolve_folder
from llava.model.loading import load_checkpoint
from llava.model.placement import Placement
from llava.model.saving import check_output_folder, refuse_existing_model
from llava.options import CommandParser
from llava.utils import exit_on_user_error, setup_logging

logger = logging.getLogger(__name__)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run `merge_lora` as a command."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--model-path", required=True, help="the adapter: folder or hub id")
    parser.add_argument("--model-base", required=True, help="what it was trained on: folder or hub id")
    parser.add_argument("--save-model-path", required=True, type=Path, help="a new folder for the result")
    parser.add_argument(
        "--force", action="store_true", help="merge into another base than the one that the adapter names"
    )
    arguments = parser.parse_args(argv)
    setup_logging()
    transformers_logging.disable_progress_bar()
    merge_lora(arguments.model_path, arguments.model_base, arguments.save_model_path, arguments.force)
    logger.info("the merged model is in %s", arguments.save_model_path)


def merge_lora(model_path: str, model_base: str, target: Path, force: bool = False) -> None:
    """Merge a LoRA checkpoint into its base.

    Args:
        model_path: Folder or hub id of the adapter.
        model_base: Folder or hub id of the base.
        target: Folder of the result.
        force: Whether the base may be another one than the adapter names.

    Raises:
        MissingFileError: If the adapter, the base or CLIP is missing.
        UserError: If the first is not a LoRA checkpoint, does not fit or names another base, or the result
            cannot be written.
    """
    folder = resolve_folder(model_path)
    if checkpoint_kind(folder) is not CheckpointKind.LORA:
        raise UserError(f"{folder} is not a LoRA checkpoint: it has no adapter_model.safetensors")
    refuse_existing_model(target, "--save-model-path")
    base = resolve_folder(model_base)
    placement = Placement(torch.device("cpu"), stored_dtype(base))
    named = find_other_base(folder, model_base)
    if named is not None and not force:
        raise UserError(
            f"{folder} was trained on {named!r}, and --model-base is {model_base!r}: with another it is "
            "noise; name that one, or add --force to merge all the same"
        )
    check_output_folder(target)
    loaded = load_checkpoint(str(folder), str(base), placement)
    loaded.model.save_pretrained(target)
    loaded.tokenizer.save_pretrained(target)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the type of a language model's stored weights, of which the embeddings are always one.

    Raises:
        UserError: If the folder holds no language model.
    """
    for _, tensor in iterate_weights(folder, ("model.embed_tokens.",)):
        return tensor.dtype
    raise UserError(f"{folder} holds no language model: it has no weights model.embed_tokens")


if __name__ == "__main__":
    sys.exit(main())
