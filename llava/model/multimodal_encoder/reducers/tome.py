"""ToMe (Token Merging, arXiv:2210.09461, ICLR 2023), here at the output of the tower.

Tokens at even places are compared with those at odd places; the most similar pairs become their mean,
weighted by how many patches each side stands for. The paper does this inside every layer of a ViT. At the
output nobody has published it: here steps of at most half of the tokens follow each other until few enough
are left.

Shapes: n tokens, N patches, d width of what is compared, D width of the tower, m = n - r merged tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import (
    Budgeted,
    Choice,
    ImageInputs,
    Signal,
    cosine,
    member_sums,
)


def match(metric: Tensor, r: int) -> Tensor:
    """Say which tokens become one.

    Args:
        metric: What is compared, (n, d).
        r: How many tokens to be rid of, up to n // 2.

    Returns:
        The place of each token after merging, int64 (n,): first the even ones that stay alone, by falling
        similarity, then the odd ones.
    """
    best, target = cosine(metric[::2], metric[1::2]).max(dim=1)  # the first of equals
    merged, alone = best.argsort(descending=True, stable=True).tensor_split([r])
    places = torch.empty(len(metric), dtype=torch.int64, device=metric.device)
    evens, odds = places[::2], places[1::2]
    odds.copy_(torch.arange(len(odds), device=metric.device) + len(alone))
    evens[alone] = torch.arange(len(alone), device=metric.device)
    evens[merged] = odds[target[merged]]
    return places


def average(values: Tensor, sizes: Tensor, places: Tensor, count: int) -> Tensor:
    """Average what has the same place.

    Args:
        values: (n, D).
        sizes: How many patches each stands for, (n,).
        places: See `match`, (n,).
        count: m.

    Returns:
        float32 (m, D).
    """
    sums, _ = member_sums(values.float() * sizes.unsqueeze(-1), places, count)
    return sums / total(sizes, places, count).unsqueeze(-1)


def total(sizes: Tensor, places: Tensor, count: int) -> Tensor:
    """Add the sizes (n,) of what has the same place (n,): (m,)."""
    sums, _ = member_sums(sizes.unsqueeze(-1), places, count)
    return sums.squeeze(-1)


def merge_to(patches: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Merge patches step by step, and their keys alike.

    Args:
        patches: Hidden states, (N, D).
        keys: What is compared, (N, d).
        count: How many tokens to leave, from 1 to N.

    Returns:
        The tokens, float32 (count, D); the patches that each stands for, float32 (count,); the token of each
        patch, int64 (N,).
    """
    tokens, metric = patches.float(), keys.float()
    sizes = torch.ones(len(patches), device=patches.device)
    group = torch.arange(len(patches), device=patches.device)
    while (length := len(tokens)) > count:
        r = min(length // 2, length - count)
        places = match(metric, r)
        tokens, metric = (average(one, sizes, places, length - r) for one in (tokens, metric))
        sizes, group = total(sizes, places, length - r), places[group]
    return tokens, sizes, group


@dataclass(frozen=True, slots=True)
class ToMe(Budgeted):
    """``ToMe:k``: k tokens, those that stayed alone in the last step before those that others could join."""

    name: ClassVar[str] = "ToMe"
    paper: ClassVar[str] = "arXiv:2210.09461 (ICLR 2023)"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.KEYS})
    needs_patches: ClassVar[bool] = True

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Merge an image's patches into ``count`` tokens; kept are those that none was merged with."""
        tokens, sizes, group = merge_to(image.patches, image.keys(), count)
        return Choice((sizes[group] == 1).nonzero().squeeze(-1), tokens.to(image.patches.dtype))
