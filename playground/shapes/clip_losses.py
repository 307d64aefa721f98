"""What the toy CLIP is trained on: pure functions of features.

Shapes: B pictures, N patches of a picture, Q questions about each, T texts, E joint width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# A patch belongs to a thing that covers this much of it; patches between the two bounds teach nothing.
COVERED, FREE = 0.35, 0.08


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


def naming_loss(joint: Tensor, questions: Tensor, share: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """Make dot products low on the patches that a question names, and high and even on the others.

    Args:
        joint: Patches in the joint space, (B, N, E).
        questions: Questions in it, (B, Q, E).
        share: Share of each patch that named things cover, (B, Q, N).
        ground: Which patches show background only, bool (B, N).

    Returns:
        The classification loss, named and other patches weighing the same, and the unevenness of the others:
        the variance of the background's products, and how far things that are not named fall below their
        mean.
    """
    products = torch.einsum("bne,bqe->bqn", joint, questions)
    named, other = (share > COVERED).float(), (share < FREE).float()
    classified = _weighted_mean(F.softplus(products), named) + _weighted_mean(F.softplus(-products), other)
    empty = ground.unsqueeze(1).float().expand_as(products)
    mean = (products * empty).sum(-1, keepdim=True) / empty.sum(-1, keepdim=True).clamp(min=1)
    shortfall = F.relu(mean - products).square()
    variance = _weighted_mean((products - mean).square(), empty)
    return classified, variance + _weighted_mean(shortfall, other * (1 - empty))


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)
