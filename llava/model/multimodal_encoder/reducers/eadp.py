"""EADP (arXiv:2607.02484, ECCV 2026): coverage of the patches that the question, or its words, are about.

A patch's relevance is half that to the whole question and half that to the positions of CLIP's text encoder
which single out few patches (low entropy); it is smoothed over its neighbors. Then patches are picked that
cover all patches by the cosine of their projections, the relevant ones first.

As published, and unlike the paper, positions before and behind the question count as words do.

Shapes: N patches on a side x side map, E width of CLIP's joint space, D' width of the language model, M
pieces of the question, P positions of CLIP's context, k patches that stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, cosine, top
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.relevance import MARGIN, opposition, smooth

LOGIT_SCALE = 100
POSITION_SHARE = 0.2
ENTROPY_TEMPERATURE = 0.01
QUESTION_SHARE = 0.5
"""Of the relevance to the whole question; the rest is that to single positions."""


def position_relevance(joint: Tensor, states: Tensor) -> Tensor:
    """Average relevance to the positions that single out few patches, by how few.

    Args:
        joint: Patches in CLIP's joint space, (N, E).
        states: Projected text states at every position, (P, E).

    Returns:
        float32 (N,).
    """
    relevance = opposition(joint, states).T  # (P, N)
    logarithms = (LOGIT_SCALE * relevance).log_softmax(dim=-1)
    entropy = -(logarithms.exp() * logarithms).sum(dim=-1)
    sharpest = top(-entropy, int(POSITION_SHARE * len(states)))
    weights = (-entropy[sharpest] / (ENTROPY_TEMPERATURE + MARGIN)).softmax(dim=0)
    return weights @ relevance[sharpest]


def dense_relevance(joint: Tensor, question: Tensor, states: Tensor, power: float = 1) -> Tensor:
    """Return the relevance of patches to a question and its words, smoothed; mean over its pieces.

    Args:
        joint: Patches in CLIP's joint space, (N, E); N is a square.
        question: Pooled pieces of the question, (M, E).
        states: Projected text states at every position, (M, P, E).
        power: The paper's beta: above 1 it sharpens the map, 0 makes it flat.

    Returns:
        float32 (N,), about 0 ... 1.
    """
    whole = opposition(joint, question).mean(dim=1)
    single = torch.stack([position_relevance(joint, piece) for piece in states]).mean(dim=0)
    relevance = QUESTION_SHARE * whole + (1 - QUESTION_SHARE) * single
    low, high = relevance.aminmax()
    side = math.isqrt(len(relevance))
    scaled = (relevance - low + MARGIN) / (high - low + MARGIN)
    return smooth(scaled.view(side, side)).flatten().pow(power)


@dataclass(frozen=True, slots=True)
class EADP(Selection):
    """``EADP:k``: patches that cover what the question is about."""

    name: ClassVar[str] = "EADP"
    paper: ClassVar[str] = "arXiv:2607.02484 (ECCV 2026)"
    needs_question: ClassVar[bool] = True
    needs_projected: ClassVar[bool] = True

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,)."""
        relevance = dense_relevance(image.joint(), image.question(), image.question_states())
        similarity = (cosine(image.projected()).clamp(-1, 1) + 1) / 2
        return pick_coverage(similarity, count, weights=relevance)
