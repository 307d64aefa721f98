"""CDPruner (arXiv:2506.10967, NeurIPS 2025): a determinantal point process conditioned on the question.

Two patches repel each other by the cosine of their projections, and a patch draws by its relevance to the
question. The set is grown by the patch that most enlarges the determinant of the kernel of the set.

Shapes: N patches, D' width of the language model, E width of CLIP's joint space, M pieces of the question, k
patches that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, cosine
from llava.model.multimodal_encoder.reducers.relevance import question_relevance

NOISE = 5e-6
"""Gains up to this share of the largest at first are what rounding to float32 leaves of dependent patches."""


@torch.no_grad()
def pick_determinant(similarity: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Pick the patch that most enlarges the determinant, again and again, the earlier on a tie.

    The kernel is ``relevance[i] * similarity[i, j] * relevance[j]``. Each pick adds a row to the Cholesky
    factor of the picked patches' kernel, and what is left of the diagonal is what a patch would multiply the
    determinant with. Once only rounding is left of it, because the patches picked span all others, the most
    relevant ones follow.

    Args:
        similarity: Cosines among the patches, float32 (N, N).
        relevance: Above 0, float32 (N,).
        count: k, at most N.

    Returns:
        The patches in the order of picking, int64 (k,).
    """
    kernel = relevance.unsqueeze(1) * similarity * relevance
    gains = kernel.diagonal().clone()
    floor = NOISE * relevance.max().square()
    # By rank and below 0: behind every gain above the floor.
    fallback = -relevance.argsort(descending=True, stable=True).argsort().float()
    factor = kernel.new_zeros(count, len(kernel))
    order = []
    for step in range(count):
        pick = torch.where(gains > floor, gains, fallback).argmax(dim=0, keepdim=True)
        order.append(pick)
        known = factor[:step].index_select(1, pick).squeeze(1) @ factor[:step]
        row = kernel.index_select(0, pick).squeeze(0) - known
        factor[step] = row / gains.index_select(0, pick).maximum(floor).sqrt()
        gains -= factor[step].square()
        for scores in (gains, fallback):
            scores.index_fill_(0, pick, -torch.inf)
    return torch.cat(order)


@dataclass(frozen=True, slots=True)
class CDPruner(Selection):
    """``CDPruner:k``: diverse patches that the question is about."""

    name: ClassVar[str] = "CDPruner"
    paper: ClassVar[str] = "arXiv:2506.10967 (NeurIPS 2025)"
    needs_question: ClassVar[bool] = True
    needs_projected: ClassVar[bool] = True

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,)."""
        relevance = question_relevance(image.joint(), image.question())
        return pick_determinant(cosine(image.projected()), relevance, count)
