"""Greedy facility location: patches that together are similar to everything that is to be covered.

A set of patches covers a row by the largest similarity that one of them has to it, and by at least 0. The sum
over rows is monotone submodular, so that picking the largest gain each time comes within 1 - 1/e of the best.

Shapes: R rows to be covered, N patches, k of which are picked.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def pick_coverage(
    similarity: Tensor,
    count: int,
    *,
    weights: Tensor | None = None,
    factor: Tensor | None = None,
    candidates: Tensor | None = None,
) -> Tensor:
    """Pick the patch of the largest gain, again and again, the earlier on a tie.

    The gain of patch v is ``factor[v] * sum_r weights[r] * max(0, similarity[r, v] - cover[r])``, where
    ``cover`` is what the patches picked so far cover. What ``cover`` is after t picks, and so how much of the
    whole is covered, is ``similarity[:, order].clamp(min=0).cummax(dim=1)``: the first t picks
    do not depend on k.

    Args:
        similarity: How well a patch covers a row, (R, N).
        count: k, at most N.
        weights: How much a row is worth, at least 0, (R,); None for all alike.
        factor: What the gain of a patch is multiplied with, at least 0, (N,); None for 1.
        candidates: Which patches may be picked, bool (N,); the others follow when these have run out, in
            raster order. None for all.

    Returns:
        The patches in the order of picking, int64 (k,).
    """
    # A weight on a row's gain is the same weight on its similarities. A patch's own are beside each other.
    weighted = similarity.float() if weights is None else similarity.float() * weights.float().unsqueeze(1)
    covering = weighted.T.contiguous()  # (N, R)
    barred = None if candidates is None else ~candidates
    picked = torch.zeros(len(covering), dtype=torch.bool, device=covering.device)
    cover = covering.new_zeros(covering.shape[1])
    missing = torch.empty_like(covering)
    order = []
    for _ in range(count):
        gains = torch.sub(covering, cover, out=missing).relu_().sum(dim=1)
        if factor is not None:
            gains = gains * factor.float()
        if barred is not None:
            gains = gains.masked_fill(barred, -1)  # below every gain
        pick = gains.masked_fill(picked, -torch.inf).argmax(dim=0, keepdim=True)
        # By index tensors, so that the host need not wait for the device.
        picked.index_fill_(0, pick, True)
        cover = torch.maximum(cover, covering.index_select(0, pick).squeeze(0))
        order.append(pick)
    return torch.cat(order)
