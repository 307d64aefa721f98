"""SCOPE (arXiv:2510.24214, NeurIPS 2025): coverage of the patches by patches that CLS attends to.

A kept patch covers every patch by the cosine of their hidden states. What a further patch would add to the
coverage is multiplied with the attention that CLS pays it, and the largest product is picked. The exponent
of the attention is 1, as published.

Shapes: N patches, k of which stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, Signal, cosine
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage


@dataclass(frozen=True, slots=True)
class SCOPE(Selection):
    """``SCOPE:k``: salient patches that cover the image."""

    name: ClassVar[str] = "SCOPE"
    paper: ClassVar[str] = "arXiv:2510.24214 (NeurIPS 2025)"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})
    needs_patches: ClassVar[bool] = True

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,)."""
        return pick_coverage(cosine(image.patches), count, factor=image.cls_attention())
