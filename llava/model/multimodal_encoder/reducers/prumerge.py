"""PruMerge and PruMerge+ (LLaVA-PruMerge, arXiv:2403.15388, ICCV 2025): prune by attention, merge by keys.

Patches whose attention from CLS is an outlier of the image stay; PruMerge+ adds a grid of patches, so that no
region goes unseen. To each are added the 32 patches with the most similar keys, weighted by their attention,
and one token more is the weighted sum of all that did not stay. Attention and keys are those of the layer
that reads the patches, as one head.

Shapes: N patches, D width of the tower, k patches kept, m patches not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.base import Budgeted, Choice, ImageInputs, Signal, cosine
from llava.model.multimodal_encoder.token_reduction import Adaptive, keep_outliers

NEIGHBORS = 32


def outlier_count(scores: Tensor) -> int:
    """Count the scores (N,) above Q3 + 1.5 IQR, at least 1: without an outlier the best patch stays."""
    return int(keep_outliers(scores.unsqueeze(0)).sum())


def most_attended(scores: Tensor, count: int) -> Tensor:
    """Return the ``count`` highest of scores (N,) in falling order, the earlier first on a tie: (count,)."""
    return scores.argsort(descending=True, stable=True)[:count]


def with_grid(scores: Tensor, outliers: int) -> Tensor:
    """Return the outliers in falling order, then those points of a grid that are not among them.

    The grid has about three points for each outlier. Its step falls from one whole number to the next, to 1
    where more than a sixth of the patches are outliers; then only the last patch is not on the grid.

    Args:
        scores: Attention of CLS, (N,).
        outliers: Their number, from 1 to N.

    Returns:
        Patches without repeats, int64 (k,).
    """
    best = most_attended(scores, outliers)
    step = max(1, len(scores) // outliers // 3)
    grid = torch.arange(0, len(scores) - 1, step, device=scores.device)
    return torch.cat([best, grid[~torch.isin(grid, best)]])


def fixed_grid(patches: int, count: int) -> range:
    """Return the grid that stands beside ``count // 2`` most attended of N patches."""
    step = 2 * patches // count
    return range(step // 2, patches - 1, step)


def has_fixed_grid(patches: int, count: int) -> bool:
    """Tell whether half of a number of tokens, from 2 to N, is the size of its grid."""
    return count // 2 == len(fixed_grid(patches, count))


def with_fixed_grid(scores: Tensor, count: int) -> Tensor:
    """Return half of ``count`` most attended patches in falling order, then a grid of as many.

    Args:
        scores: Attention of CLS, (N,).
        count: One for which `has_fixed_grid`.

    Returns:
        Patches, int64 (2 * (count // 2),); what is attended to and on the grid is there twice.
    """
    best = most_attended(scores, count // 2)
    return torch.cat([best, torch.tensor(fixed_grid(len(scores), count), device=scores.device)])


def merge(patches: Tensor, scores: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
    """Add to each chosen patch its neighbors, and append what is left as one token.

    The authors' list of patches that were not chosen loses one from its front for each repeat among those
    that were, so that neighbors are looked for among N entries in any case.

    Args:
        patches: Hidden states, (N, D).
        scores: Attention of CLS, (N,).
        keys: Keys of the same layer, (N, D).
        chosen: Patches in the order of their tokens, repeats possible, int64 (k,).

    Returns:
        Tokens (k + 1, D) in the dtype of ``patches``. The weights are not normalized, so that the last is
        far shorter than the others.
    """
    hidden = patches.float()
    not_chosen = torch.ones_like(scores, dtype=torch.bool).index_fill(0, chosen, False)
    repeats = len(chosen) + int(not_chosen.sum()) - len(scores)
    others = not_chosen.nonzero().squeeze(-1)[repeats:]  # (m,)
    pool = torch.cat([chosen, others]).sort().values  # (N,)
    similarity = cosine(keys[chosen], keys[pool])
    itself = torch.searchsorted(pool, chosen).unsqueeze(-1)
    similarity.scatter_(1, itself, -torch.inf)
    nearest = similarity.argsort(dim=1, descending=True, stable=True)[:, : min(NEIGHBORS, len(pool) - 1)]
    weights = torch.zeros_like(similarity).scatter_(1, nearest, scores[pool][nearest])
    rest = scores[others] @ hidden[others]
    return torch.cat([hidden[chosen] + weights @ hidden[pool], rest.unsqueeze(0)]).to(patches.dtype)


@dataclass(frozen=True, slots=True)
class PruMerge(Budgeted):
    """``PruMerge:k`` or ``PruMerge:-1``: k + 1 tokens by falling attention, the last a sum of the rest.

    With -1 the outliers of the image stay. Where it has none, its best patch does; the released code would
    leave the last token alone.
    """

    name: ClassVar[str] = "PruMerge"
    paper: ClassVar[str] = "arXiv:2403.15388 (ICCV 2025)"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS})
    needs_next_layer: ClassVar[bool] = True
    adaptive: ClassVar[bool] = True
    adds_rest: ClassVar[bool] = True

    def own_count(self, image: ImageInputs) -> int:
        """Count the outliers of the image, at least 1."""
        return outlier_count(image.next_layer()[0])

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the ``count`` most attended patches, each with its neighbors added."""
        scores, keys = image.next_layer()
        chosen = most_attended(scores, count)
        return Choice(chosen.sort().values, merge(image.patches, scores, keys, chosen))


@dataclass(frozen=True, slots=True)
class PruMergePlus(PruMerge):
    """``PruMerge+:k`` or ``PruMerge+:-1``: PruMerge, with a grid of patches behind those attended to.

    With -1 the grid has about three points for each outlier. As published, the number of tokens is not
    smooth: an image with more than 1/6 of its patches outliers keeps all patches but one, 575 of 576.

    With k, half of the patches are the most attended ones and half the grid, k + 1 tokens (k if it is odd)
    with repeats where both meet. Only a k whose grid has just as many points will do, for 576 patches 64,
    128 and 192 among them.
    """

    name: ClassVar[str] = "PruMerge+"

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the most attended patches and a grid, each with its neighbors added.

        Args:
            image: It.
            count: Outliers for -1, otherwise patches that stay.

        Raises:
            UserError: If no grid for the number of patches comes out.
        """
        scores, keys = image.next_layer()
        if isinstance(self.budget, Adaptive):
            chosen = with_grid(scores, count)
        else:
            self.check(len(scores))
            chosen = with_fixed_grid(scores, count)
        return Choice(chosen.unique(), merge(image.patches, scores, keys, chosen))

    def check(self, patches: int) -> None:
        """Refuse a number that is not twice its grid.

        Raises:
            UserError: If it is not.
        """
        if isinstance(self.budget, Adaptive) or (count := self.count(patches)) >= patches:
            return
        possible = [one for one in range(2, patches) if has_fixed_grid(patches, one)]
        if count not in possible:
            below = [str(one) for one in possible if one < count][-1:]
            above = [str(one) for one in possible if one > count][:1]
            raise UserError(
                f"{self} asks for {count} of {patches} patches, half of them a grid that does not come out; "
                f"the nearest that can be met: {' or '.join(below + above)}"
            )
