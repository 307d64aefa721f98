"""Putting visual tokens where the prompt says ``<image>``: pure functions on ids and embeddings.

Shapes: B samples, L_i ids of sample i, T_i its length once every placeholder has become its image's visual
tokens, H width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.placement import hand_over

ImageText = str | Sequence[str]
"""What CLIP's text encoder reads for one image: a text, or several (the human turns of a sample)."""


@dataclass(frozen=True, slots=True)
class SplicedBatch:
    """A padded batch, ready for the language model.

    Attributes:
        embeddings: (B, T, H).
        attention_mask: True on what is not padding, (B, T).
        position_ids: 0, 1, 2, … on what is not padding, 0 elsewhere, (B, T).
        labels: ``IGNORE_INDEX`` on visual tokens and padding, (B, T).
    """

    embeddings: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor


def drop_padding(rows: Tensor, attention_mask: Tensor | None) -> list[Tensor]:
    """Cut a padded batch (B, L) into its rows (L_i,); a missing mask means that nothing is padding."""
    if attention_mask is None:
        return list(rows)
    return [row[mask] for row, mask in zip(rows, attention_mask.bool(), strict=True)]


def find_padding(ids: Tensor, pad_id: int) -> Tensor | None:
    """Tell padding from text by its id, for callers that give no mask.

    Args:
        ids: A batch, (B, L).
        pad_id: Padding at the ends of a row; between other ids it is text, such as the unknown token, which
            LLaVA pads with.

    Returns:
        True on what is not padding, (B, L); None if nothing is.
    """
    is_text = ids != pad_id
    from_left = is_text.cumsum(dim=1) > 0
    from_right = is_text.flip(1).cumsum(dim=1).flip(1) > 0
    mask = (from_left & from_right) | ~is_text.any(dim=1, keepdim=True)
    return None if bool(mask.all()) else mask


def images_per_sample(ids: Sequence[Tensor], images: int) -> list[range]:
    """Say which images belong to which sample, in the order of their placeholders.

    Either every image has its placeholder, or, as LLaVA's training data has it, every sample without a
    placeholder brings an image of its own that is not shown. Where there is no placeholder at all, no image
    is shown, and none of those that are left over behind the last placeholder.

    Args:
        ids: One (L_i,) tensor per sample.
        images: How many images came with the batch.

    Returns:
        Per sample the indices of the images that its placeholders show.

    Raises:
        UserError: If there are fewer images than placeholders, or it cannot be told which one is not shown.
    """
    placeholders = [int((row == IMAGE_TOKEN_INDEX).sum()) for row in ids]
    total = sum(placeholders)
    with_dummies = sum(max(count, 1) for count in placeholders)
    if total == 0:
        return [range(0)] * len(placeholders)
    if images != total and images < with_dummies:
        raise UserError(f"{total} <image> placeholders in the prompt, {images} images given")
    start, owned = 0, []
    for count in placeholders:
        owned.append(range(start, start + count))
        start += count if images == total else max(count, 1)
    return owned


def match_texts(texts: Sequence[ImageText] | str, shown: Sequence[range], images: int) -> list[ImageText]:
    """Match texts with images: one for all, one per image, or else one per sample.

    Args:
        texts: What the caller gave. As many as there are images belong to these, even if there are as many
            samples and one of them shows several.
        shown: Per sample the indices of its images.
        images: How many there are.

    Returns:
        One per image.

    Raises:
        UserError: If their number is none of these.
    """
    if isinstance(texts, str):
        return [texts] * images
    if len(texts) == images:
        return list(texts)
    if len(texts) != len(shown):
        raise UserError(f"{len(texts)} texts for {images} images in {len(shown)} prompts; give one per image")
    return texts_of_samples(texts, shown, images)


def texts_of_samples(texts: Sequence[ImageText], shown: Sequence[range], images: int) -> list[ImageText]:
    """Give every image the text of the sample that shows it; one that none shows is never read."""
    per_image: list[ImageText] = [""] * images
    for text, own in zip(texts, shown, strict=True):
        for image in own:
            per_image[image] = text
    return per_image


def expand_placeholders(ids: Tensor, counts: Sequence[int]) -> Tensor:
    """Repeat the i-th placeholder ``counts[i]`` times: (L,) -> (T,).

    Raises:
        UserError: If there are not as many counts as placeholders.
    """
    return ids.repeat_interleave(_repeats(ids, counts))


def expand_labels(labels: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    """Make the labels (L,) of ``ids`` (L,) those of its expansion (T,), without visual tokens."""
    is_image = ids == IMAGE_TOKEN_INDEX
    return labels.masked_fill(is_image, IGNORE_INDEX).repeat_interleave(_repeats(ids, counts))


def _repeats(ids: Tensor, counts: Sequence[int]) -> Tensor:
    is_image = ids == IMAGE_TOKEN_INDEX
    if int(is_image.sum()) != len(counts):
        raise UserError(
            f"{int(is_image.sum())} <image> placeholders in the prompt, {len(counts)} images given"
        )
    repeats = torch.ones_like(ids)
    repeats[is_image] = torch.tensor(list(counts), dtype=ids.dtype, device=ids.device)
    return repeats


def fill_placeholders(ids: Tensor, embeddings: Tensor, visual_tokens: Tensor) -> Tensor:
    """Write visual tokens over the embeddings of their placeholders.

    Args:
        ids: Expanded ids, (T,), which may lie on the host.
        embeddings: Embeddings of the ids, anything at placeholders, (T, H).
        visual_tokens: Projected tokens of the sample's images, back to back. More rows than placeholders is
            what a truncated prompt leaves: the last rows are dropped with their placeholders. (at least the
            placeholders, H)

    Returns:
        (T, H).
    """
    is_image = ids == IMAGE_TOKEN_INDEX
    kept = visual_tokens[: int(is_image.sum())].to(embeddings.dtype)
    return embeddings.masked_scatter(hand_over(is_image, embeddings.device).unsqueeze(-1), kept)


def count_supervised(labels: Tensor) -> Tensor:
    """Count the labels (B, T) that are predicted; nothing predicts the first of a row."""
    return labels[:, 1:].ne(IGNORE_INDEX).sum()


def pad(embeddings: Sequence[Tensor], labels: Sequence[Tensor], side: str = "right") -> SplicedBatch:
    """Pad samples of (T_i, H) embeddings and (T_i,) labels with zeros to the longest.

    Raises:
        UserError: If ``side`` is neither ``right`` nor ``left``.
    """
    if side not in ("right", "left"):
        raise UserError(f"tokenizer_padding_side is {side!r}; accepted: right, left")
    first, size, longest = embeddings[0], len(embeddings), max(map(len, embeddings))
    batch = SplicedBatch(
        embeddings=first.new_zeros(size, longest, first.shape[-1]),
        attention_mask=torch.zeros(size, longest, dtype=torch.bool, device=first.device),
        position_ids=torch.zeros(size, longest, dtype=torch.long, device=first.device),
        labels=torch.full((size, longest), IGNORE_INDEX, dtype=torch.long, device=first.device),
    )
    for i, (rows, row_labels) in enumerate(zip(embeddings, labels, strict=True)):
        real = slice(0, len(rows)) if side == "right" else slice(longest - len(rows), longest)
        batch.embeddings[i, real] = rows
        batch.attention_mask[i, real] = True
        batch.position_ids[i, real] = torch.arange(len(rows), device=first.device)
        batch.labels[i, real] = row_labels
    return batch
