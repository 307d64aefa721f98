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

from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, SelectionWithRest, Signal, cosine
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.relevance import question_relevance, smooth
from llava.model.multimodal_encoder.token_reduction import keep_outliers


@dataclass(frozen=True, slots=True)
class Cover(SelectionWithRest):
    """``Cover:k``: k patches and the mean of the rest; ``-1``: as many as TRIM's interquartile rule keeps.

    Padding that makes an image square is worth nothing, is kept only where nothing else is left, and does
    not enter the quartiles.
    """

    name: ClassVar[str] = "Cover"
    paper: ClassVar[str] = "-"
    adaptive: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = True
    needs_question: ClassVar[bool] = True
    needs_padding: ClassVar[bool] = True

    def own_count(self, image: ImageInputs) -> int:
        """Count the outliers in relevance among the patches that are not padding."""
        shown = image.relevance()[~image.in_padding()]
        return int(keep_outliers(shown[None]).sum())

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,)."""
        shown = ~image.in_padding()
        similarity = (cosine(image.patches) + 1) / 2
        return pick_coverage(similarity, count, weights=self.worth(image) * shown, candidates=shown)

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
