"""FasterVLM (arXiv:2412.01818v1): the patches that CLS attends to most.

The floor under every method that looks at attention: a score per patch, the k best, nothing else. The third
version of the same paper is VisPruner (`vispruner.py`).

Shapes: N patches, k of them kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, Signal, top


@dataclass(frozen=True, slots=True)
class FasterVLM(Selection):
    """``FasterVLM:k``: k tokens in raster order."""

    name: ClassVar[str] = "FasterVLM"
    paper: ClassVar[str] = "arXiv:2412.01818v1"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return the ``count`` patches that CLS attends to most in the selected layer, (k,)."""
        return top(image.cls_attention(), count)
