"""VisPruner (arXiv:2412.01818v3, ICCV 2025): half by attention, half by thinning out what looks alike.

Half of the tokens are the patches that CLS attends to most. Of the others, sorted by attention, every second
one is compared with those between, and those 8 most similar to any of them go; so on until the other half
of the tokens is left. Where two similarities are nearly equal, all that follows hangs on which is greater:
in half precision, or on another device, expect another second half.

Shapes: N patches, D width of the tower, k patches kept, R patches of a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, Signal, cosine

IMPORTANT_RATIO = 0.5
REMOVED_PER_ROUND = 8


def thin_out(similarity: Tensor, pool: Tensor, count: int) -> Tensor:
    """Remove patches that look like others until few enough are left.

    The released code stops with an error where a round has an odd number of patches, or fewer to compare than
    to remove. This goes on, all that are compared then being removed, and agrees wherever that does not stop.

    Args:
        similarity: Of all patches to each other, (N, N).
        pool: Patches in an order that matters, int64 (R,).
        count: How many to leave.

    Returns:
        What is left, int64 (count,), in no order that means anything.
    """
    while len(pool) > count > 0:
        left, right = pool[::2], pool[1::2]
        removed = min(REMOVED_PER_ROUND, len(pool) - count)
        closest = similarity[left.unsqueeze(-1), right].amax(dim=1)
        by_closeness = left[closest.argsort(descending=True, stable=True)]
        pool = torch.cat([by_closeness[removed:], right])
    return pool[:count]


def important_and_diverse(
    scores: Tensor, patches: Tensor, count: int, important_ratio: float = IMPORTANT_RATIO
) -> tuple[Tensor, Tensor]:
    """Choose patches that matter and patches that differ.

    Args:
        scores: Attention of CLS, (N,).
        patches: Hidden states, (N, D).
        count: k, up to N.
        important_ratio: Share of k that attention alone decides, from 0 to 1.

    Returns:
        The important patches, by falling attention, and the diverse ones: int64, together (k,).
    """
    by_attention = scores.argsort(descending=True, stable=True)
    important, pool = by_attention.tensor_split([int(count * important_ratio)])
    return important, thin_out(cosine(patches), pool, count - len(important))


@dataclass(frozen=True, slots=True)
class VisPruner(Selection):
    """``VisPruner:k``: k tokens in raster order."""

    name: ClassVar[str] = "VisPruner"
    paper: ClassVar[str] = "arXiv:2412.01818v3 (ICCV 2025)"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    needs_patches: ClassVar[bool] = True

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return ``count`` patches, (k,), the half of which is important and the other half diverse."""
        return torch.cat(important_and_diverse(image.cls_attention(), image.patches, count))
