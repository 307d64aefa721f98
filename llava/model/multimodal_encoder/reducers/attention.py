"""Attention of single layers from the outputs of their query and key projections, wherever else it runs.

Whatever kernel the encoder's own attention uses, its inputs are enough.

Shapes: L positions, CLS first; D width, H heads of width h.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cls_attention(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention of CLS to every patch, averaged over heads.

    Args:
        queries: Output of ``q_proj``, (L, D); only that of CLS is read.
        keys: Output of ``k_proj``, (L, D).
        heads: H.

    Returns:
        float32 (L - 1,); the softmax is over CLS too.
    """
    query = queries[0].float().unflatten(-1, (heads, -1))  # (H, h)
    key = keys.float().unflatten(-1, (heads, -1)).transpose(0, 1)  # (H, L, h)
    scores = (key @ query.unsqueeze(-1)).squeeze(-1) / query.shape[-1] ** 0.5  # (H, L)
    return scores.softmax(dim=-1).mean(dim=0)[1:]


def mean_keys(keys: Tensor, heads: int) -> Tensor:
    """Average keys (L, D) over heads and leave CLS out, float32 (L - 1, h)."""
    return keys[1:].float().unflatten(-1, (heads, -1)).mean(dim=1)


def received_attention(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Attention that every patch receives, averaged over heads and over all queries.

    One head at a time, since only the column means of its map are needed.

    Args:
        queries: Output of ``q_proj``, (L, D).
        keys: Output of ``k_proj``, (L, D).
        heads: H.

    Returns:
        float32 (L - 1,).
    """
    query, key = (one.float().unflatten(-1, (heads, -1)).unbind(1) for one in (queries, keys))
    received = torch.zeros(len(keys), device=keys.device)
    for own_query, own_key in zip(query, key, strict=True):
        scores = own_query @ own_key.T / own_query.shape[-1] ** 0.5
        received += scores.softmax(dim=-1).mean(dim=0)
    return received[1:] / heads
