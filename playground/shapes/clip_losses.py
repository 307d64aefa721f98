"""What the toy CLIP is trained on: pure functions of features.

Shapes: B pictures, N patches of a picture, Q questions about each, T texts, E joint width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# A patch belongs to a thing that covers this much of it; patches between the two bounds teach nothing.
COVERED, FREE = 0.35, 0.08
# How far from 0 products are pushed: far enough that a thing which one of ten averaged questions names still
# stands out.
MARGIN = 3.0


def contrastive_loss(pooled: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """CLIP's own loss: each picture (B, E) finds its caption (B, E) among all, and the reverse."""
    logits = scale.exp().clamp(max=100) * F.normalize(pooled, dim=-1) @ F.normalize(captions, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def attribute_loss(joint: Tensor, texts: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of patches over attribute texts, lowest dot product first.

    Args:
        joint: Patches in the joint space, (B, N, E).
        texts: One text per attribute, (T, E).
        label: The attribute that each patch depicts, -100 where none or several, (B, N).
    """
    return F.cross_entropy((-joint @ texts.T).flatten(0, 1), label.flatten(), ignore_index=-100)


def naming_loss(
    joint: Tensor, questions: Tensor, share: Tensor, ground: Tensor, related: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Make dot products low on the patches that a question names, and high and even on the others.

    Args:
        joint: Patches in the joint space, (B, N, E).
        questions: Questions in it, (B, Q, E).
        share: Share of each patch that named things cover, (B, Q, N).
        ground: Which patches show background only, bool (B, N).
        related: Share of each patch that is not to be told from what is named, (B, Q, N); ``share`` if
            missing.

    Returns:
        The classification loss, named and other patches weighing the same, and the unevenness of the others:
        how far from the background's mean its own products are, and those of things that are not named.
    """
    products = torch.einsum("bne,bqe->bqn", joint, questions)
    named, other = (share > COVERED).float(), ((share if related is None else related) < FREE).float()
    low, high = F.softplus(products + MARGIN), F.softplus(MARGIN - products)
    empty = ground.unsqueeze(1).float().expand_as(products)
    mean = (products * empty).sum(-1, keepdim=True) / empty.sum(-1, keepdim=True).clamp(min=1)
    distance = (products - mean).square()
    uneven = _weighted_mean(distance, empty) + _weighted_mean(distance, other * (1 - empty))
    return _weighted_mean(low, named) + _weighted_mean(high, other), uneven


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)
