"""Cover, ours: patches that together resemble all that the question is about, and TRIM's merged token.

TRIM keeps the most relevant patches, which may show the same thing many times. Here a patch is worth what it
adds: the gain, weighted by relevance to the question, in how well the kept patches resemble every patch. The
output is what TRIM's checkpoints know: kept patches in raster order and the mean of the rest.

Shapes: N patches, k of which stay, E width of CLIP's joint space, D width of the tower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import Budgeted, Choice, ImageInputs, Signal, cosine
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.relevance import question_relevance, smooth
from llava.model.multimodal_encoder.token_reduction import keep_outliers, order_and_merge


@dataclass(frozen=True, slots=True)
class Cover(Budgeted):
    """``Cover:k``: k patches and the mean of the rest; ``-1``: as many as TRIM's interquartile rule keeps.

    Padding that makes an image square is worth nothing, is kept only where nothing else is left, and does
    not enter the quartiles.
    """

    name: ClassVar[str] = "Cover"
    paper: ClassVar[str] = "-"
    adaptive: ClassVar[bool] = True
    adds_rest: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = True
    needs_question: ClassVar[bool] = True
    needs_padding: ClassVar[bool] = True

    def own_count(self, image: ImageInputs) -> int:
        """Count the outliers in relevance among the patches that are not padding."""
        shown = image.relevance()[~image.in_padding()]
        return int(keep_outliers(shown[None]).sum())

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep ``count`` patches and merge the others."""
        shown = ~image.in_padding()
        similarity = (cosine(image.patches) + 1) / 2
        picked = pick_coverage(similarity, count, weights=self.worth(image) * shown, candidates=shown)
        keep = torch.zeros(1, len(shown), dtype=torch.bool, device=shown.device)
        keep[0, picked] = True
        ordered, merged = order_and_merge(image.patches[None], keep)
        return Choice(picked.sort().values, torch.cat([ordered[0, :count], merged]))

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh the patches that are to be covered: 0 to 1 by relevance, smoothed over neighbors, (N,)."""
        relevance = question_relevance(image.joint(), image.question())
        side = math.isqrt(len(relevance))
        return smooth(relevance.view(side, side)).flatten()


@dataclass(frozen=True, slots=True)
class CoverSalient(Cover):
    """``Cover+CLS:k``: as `Cover`, where a patch is worth its relevance times the attention of CLS."""

    name: ClassVar[str] = "Cover+CLS"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh the patches that are to be covered by relevance and saliency, (N,)."""
        return Cover.worth(self, image) * image.cls_attention()
