"""HiPrune (arXiv:2508.00553, ACL 2026): what middle layers attend to, its surroundings, and the last layer's.

A few *anchors* are the patches that receive most attention in the ninth layer, where attention lies on
objects; *buffers* are their neighbors; *registers*, all the others, receive most in the selected layer,
where attention lies on patches that sum up the image. HiPrune++, which reads the question too, is not here.

Shapes: N patches, k of them kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, Signal, top

ALPHA = 0.1


def anchors_and_buffers(scores: Tensor, count: int, alpha: float = ALPHA) -> Tensor:
    """Return the most attended patches, each with the four around it.

    As in the released code, the patch to the left of a row's first is the last of the row above, and what
    would lie outside the image is its first or its last patch; the paper leaves it out.

    Args:
        scores: Attention received in a middle layer, (N,).
        count: k.
        alpha: Share of k that goes to anchors and buffers, five patches at a time.

    Returns:
        int64 (n,), ascending, at most five per anchor.
    """
    side = math.isqrt(len(scores))
    anchors = top(scores, round(count * alpha / 5))
    around = [anchors + step for step in (0, -1, 1, -side, side)]
    return torch.cat(around).clamp(0, len(scores) - 1).unique()


def with_registers(scores: Tensor, chosen: Tensor, count: int) -> Tensor:
    """Fill up with the most attended of the other patches.

    Args:
        scores: Attention received in the selected layer, (N,).
        chosen: Patches that stay in any case, int64 (n,), at most k.
        count: k.

    Returns:
        int64 (k,), ascending.
    """
    return top(scores.index_fill(0, chosen, torch.inf), count)


@dataclass(frozen=True, slots=True)
class HiPrune(Selection):
    """``HiPrune:k``: k tokens in raster order."""

    name: ClassVar[str] = "HiPrune"
    paper: ClassVar[str] = "arXiv:2508.00553 (ACL 2026)"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.RECEIVED_ATTENTION})

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return ``count`` patches, (k,): anchors, buffers and registers."""
        middle, last = image.received_attention()
        return with_registers(last, anchors_and_buffers(middle, count), count)
