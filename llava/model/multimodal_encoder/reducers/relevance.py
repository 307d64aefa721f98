"""Relevance to the question as CDPruner and EADP take it: opposed to CLIP's similarity, as TRIM's is.

Shapes: N patches on a side x side map, E width of CLIP's joint space, M pieces of the question, P
positions of CLIP's context.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llava.model.multimodal_encoder.reducers.base import cosine

MARGIN = 1e-6
"""What keeps the least relevant patch above 0, and a span of 0 from dividing."""


def opposition(joint: Tensor, texts: Tensor) -> Tensor:
    """Return the negative cosine of patches (N, E) with each of some texts (P, E), float32 (N, P).

    The papers' formulas have no minus, the published codes do: patches of a contrastively trained ViT tend to
    oppose the text that they depict.
    """
    return -cosine(joint, texts)


def question_relevance(joint: Tensor, question: Tensor) -> Tensor:
    """Scale the relevance of one image's patches to 0 ... 1, mean over pieces of the question.

    The least relevant patch ends slightly above 0, the most relevant one slightly above 1; where all are
    alike, all are 1.

    Args:
        joint: Patches in CLIP's joint space, (N, E).
        question: Pooled pieces of the question, (M, E).

    Returns:
        float32 (N,).
    """
    relevance = opposition(joint, question).mean(dim=1)
    low, high = relevance.aminmax()
    return (relevance - low + MARGIN) / (high - low).clamp(min=MARGIN)


def smooth(scores: Tensor) -> Tensor:
    """Blur a map with a 3 x 3 Gaussian of standard deviation 1, reflected at its border: (side, side)."""
    bell = torch.tensor([-1.0, 0.0, 1.0], device=scores.device).square().div(-2).exp()
    kernel = torch.outer(bell, bell) / bell.sum().square()
    padded = F.pad(scores[None, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, kernel[None, None])[0, 0]
