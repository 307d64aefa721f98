"""DivPrune (arXiv:2503.02175, CVPR 2025): the patches whose closest pair is farthest apart.

It looks at the patches behind the projector and at nothing else. The first patch is the one whose nearest
other is farthest away; then always the one follows that is farthest from the nearest patch picked so far.

Shapes: N patches, D' width of the language model, k patches that stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, cosine


@torch.no_grad()
def pick_diverse(projected: Tensor, count: int) -> Tensor:
    """Pick patches by their cosine distance to those picked before, the earlier on a tie.

    Unlike the published code this never picks a patch twice, so that equal patches do not lower the count.

    Args:
        projected: (N, D').
        count: k, at most N.

    Returns:
        The patches in the order of picking, int64 (k,).
    """
    distances = 1 - cosine(projected)
    nearest_picked = distances.new_full((len(distances),), torch.inf)
    scores = distances.clone().fill_diagonal_(torch.inf).amin(dim=0)  # to the nearest other
    order = []
    for _ in range(count):
        pick = scores.argmax(dim=0, keepdim=True)
        order.append(pick)
        nearest_picked = nearest_picked.minimum(distances.index_select(0, pick).squeeze(0))
        # Nothing is nearer, so that a picked patch stays out.
        scores = nearest_picked.index_fill_(0, pick, -torch.inf)
    return torch.cat(order)


@dataclass(frozen=True, slots=True)
class DivPrune(Selection):
    """``DivPrune:k``: maximize the smallest distance between kept patches."""

    name: ClassVar[str] = "DivPrune"
    paper: ClassVar[str] = "arXiv:2503.02175 (CVPR 2025)"
    needs_projected: ClassVar[bool] = True

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,)."""
        return pick_diverse(image.projected(), count)
