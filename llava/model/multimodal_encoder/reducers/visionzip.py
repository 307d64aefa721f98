"""VisionZip (arXiv:2412.04467, CVPR 2025): the patches CLS attends to, and sums that stand for the others.

The *dominant* tokens are CLS and the patches it attends to most. Of the other patches, some at equal steps
are seeds; each further one joins the seed with the most similar key, and a *contextual* token is its seed
plus the mean of those that joined it. The paper speaks of averaging; the released code, and this one, adds.

Shapes: N patches, D width of the tower, h width of one of its heads, R patches that are not dominant, c
contextual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.base import (
    Budgeted,
    Choice,
    ImageInputs,
    Signal,
    cosine,
    member_sums,
    top,
)

FEWEST = 4  # with fewer tokens, none would be contextual


def split(count: int) -> tuple[int, int]:
    """Divide a number of tokens as the authors do: 5 of 32 are contextual, rounded, the others dominant.

    Returns:
        Dominant tokens, CLS among them, and contextual ones: 54 and 10 of 64.
    """
    contextual = (5 * count + 16) // 32
    return count - contextual, contextual


def seed_patches(rest: Tensor, contextual: int) -> Tensor:
    """Pick every step-th of the patches (R,), R // c being the step, up to c of them: (c,)."""
    step = max(1, len(rest) // contextual)
    return rest[::step][:contextual]


def contextual_tokens(
    patches: Tensor, keys: Tensor, rest: Tensor, contextual: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the patches that are not dominant around some of them.

    Args:
        patches: Hidden states, (N, D).
        keys: Keys averaged over heads, (N, h).
        rest: The patches that are not dominant, ascending, int64 (R,).
        contextual: c, from 1 to R.

    Returns:
        The tokens, float32 (c, D); the patches that seed them, int64 (c,); how many others joined each, (c,).
    """
    seeds = seed_patches(rest, contextual)
    others = rest[~torch.isin(rest, seeds)]
    nearest = cosine(keys[others], keys[seeds]).argmax(dim=1)  # (R - c,); argmax takes the first of equals
    sums, joined = member_sums(patches[others], nearest, contextual)
    means = sums / joined.clamp(min=1).unsqueeze(-1)
    return patches[seeds].float() + means, seeds, joined


@dataclass(frozen=True, slots=True)
class VisionZip(Budgeted):
    """``VisionZip:k``: k tokens, CLS, then dominant patches in raster order, then contextual tokens.

    A k below 4 is refused, since the authors' split leaves no contextual token there.
    """

    name: ClassVar[str] = "VisionZip"
    paper: ClassVar[str] = "arXiv:2412.04467 (CVPR 2025)"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS, Signal.CLS_ATTENTION, Signal.KEYS})

    def check(self, patches: int) -> None:
        """Refuse a number that cannot be split.

        Raises:
            UserError: If it cannot.
        """
        count = self.count(patches)
        if count < min(FEWEST, patches):
            raise UserError(
                f"{self} asks for {count} of {patches} visual tokens, but {self.name} needs "
                f"at least {FEWEST} to have a contextual one"
            )

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Zip an image into ``count`` tokens.

        Raises:
            UserError: If the number cannot be split.
        """
        self.check(len(image.patches))
        dominant, contextual = split(count)
        return zip_tokens(image, dominant, contextual)


def zip_tokens(image: ImageInputs, dominant: int, contextual: int) -> Choice:
    """Reduce an image to CLS, ``dominant - 1`` of its patches and ``contextual`` tokens of the others."""
    patches, scores = image.patches, image.cls_attention()
    kept = top(scores, dominant - 1)
    is_rest = torch.ones_like(scores, dtype=torch.bool).index_fill(0, kept, False)
    merged, _, _ = contextual_tokens(patches, image.keys(), is_rest.nonzero().squeeze(-1), contextual)
    return Choice(kept, torch.cat([image.cls().unsqueeze(0), patches[kept], merged.to(patches.dtype)]))
