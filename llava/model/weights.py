"""Weights of a LLaVA that come from files of their own, or belong to tokens of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
from llava.errors import UserError, shown
from llava.model.checkpoint_files import PROJECTOR, shapes_of
from llava.model.checkpoint_sizes import refuse_other_shapes
from llava.model.sharding import gathered_parameters

MOST_NEW_TOKENS = 64  # without embeddings of their own in a checkpoint
MOST_UNUSED_ROWS, MOST_UNUSED_SHARE = 512, 0.05  # of tables that were made longer than there are tokens


def load_projector(projector: nn.Module, stored: dict[str, Tensor], path: Path) -> None:
    """Fill a projector from what a file such as ``mm_projector.bin`` holds.

    Args:
        projector: Changed in place.
        stored: The file's tensors; their names may carry any prefix.
        path: The file, for messages.

    Raises:
        UserError: If the file's tensors do not fit the projector.
    """
    weights = {name.split(PROJECTOR, 1)[1]: tensor for name, tensor in stored.items() if PROJECTOR in name}
    sentence = f"{path} does not fit this model's projector"
    with gathered_parameters(projector.parameters()):
        own = projector.state_dict()
        unlike = refuse_other_shapes(own, shapes_of(weights), sentence) | (own.keys() - weights.keys())
        if unlike:
            raise UserError(f"{sentence}: only one of them has {min(unlike)}")
        projector.load_state_dict(weights)


def add_image_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Any) -> None:
    """Add the special tokens that the settings ask for; their new rows begin as the mean of the old ones.

    Args:
        model: A language model; its embeddings and its head grow if they have no room.
        tokenizer: Extended in place.
        settings: Anything with LLaVA's ``mm_use_im_patch_token`` (absent means True, as in LLaVA) and
            ``mm_use_im_start_end``.

    Raises:
        UserError: If the tokenizer has many more tokens than the model, for which memory would be taken, or
            many fewer, or sequences begin or end with one that the model lacks.
    """
    tokens = [DEFAULT_IMAGE_PATCH_TOKEN] if getattr(settings, "mm_use_im_patch_token", True) else []
    if getattr(settings, "mm_use_im_start_end", False):
        tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    before = model.config.vocab_size
    for name in ("bos_token", "eos_token"):
        number = getattr(tokenizer, f"{name}_id")
        if number is not None and number >= before:
            raise UserError(
                f"the tokenizer's {name} {shown(getattr(tokenizer, name))} has the id {number}, and the "
                f"model embeddings for {before:,}"
            )
    tokenizer.add_tokens(tokens, special_tokens=True)
    if len(tokenizer) > before + MOST_NEW_TOKENS:
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model embeddings for {before:,}; at "
            f"most {MOST_NEW_TOKENS} new ones are given any"
        )
    unused = before - len(tokenizer)
    if unused > max(MOST_UNUSED_ROWS, MOST_UNUSED_SHARE * before):
        raise UserError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model embeddings for {before:,}, so it is "
            f"another model's; {unused:,} would have no token, and at most "
            f"{max(MOST_UNUSED_ROWS, int(MOST_UNUSED_SHARE * before)):,} may"
        )
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
            with gathered_parameters([layer.weight]):
                layer.weight.data[before:] = layer.weight.data[:before].mean(dim=0, keepdim=True)


def load_new_rows(
    embeddings: Tensor,
    stored_tensors: dict[str, Tensor],
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    all_rows: bool = False,
) -> None:
    """Copy the start and end tokens' rows from a projector file that brings all embeddings or just these.

    Args:
        embeddings: The model's input embeddings, (V, H), changed in place.
        stored_tensors: What the file holds.
        path: The file, for messages.
        tokenizer: Knows which rows are theirs.
        all_rows: Whether the others are copied too if the file has them: stage 1 changes every row that its
            captions use, and its result answers with those. As in LLaVA, stage 2 does not begin with them.

    Raises:
        UserError: If the file has no embeddings or of another size.
    """
    rows = [
        tokenizer.convert_tokens_to_ids(token) for token in (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN)
    ]
    stored = stored_tensors.get("model.embed_tokens.weight")
    new_shape = (len(rows), embeddings.shape[1])
    if stored is None or stored.shape not in (embeddings.shape, new_shape):
        found = "none" if stored is None else tuple(stored.shape)
        raise UserError(
            f"{path} should hold model.embed_tokens.weight of shape {tuple(embeddings.shape)} or {new_shape} "
            f"for the start and end tokens; found {found}"
        )
    if stored.shape == new_shape:
        embeddings[rows] = stored.to(embeddings)
    elif all_rows:
        embeddings.copy_(stored)
    else:
        embeddings[rows] = stored[rows].to(embeddings)
