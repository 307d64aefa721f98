"""FasterVLM (arXiv:2412.01818v1): the patches that CLS attends to most.

The floor under every method that looks at attention: a score per patch, the k best, nothing else. The third
version of the same paper is VisPruner (`vispruner.py`).

Shapes: N patches, k of them kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llava.model.multimodal_encoder.reducers.base import Budgeted, Choice, ImageInputs, Signal, top


@dataclass(frozen=True, slots=True)
class FasterVLM(Budgeted):
    """``FasterVLM:k``: k tokens in raster order."""

    name: ClassVar[str] = "FasterVLM"
    paper: ClassVar[str] = "arXiv:2412.01818v1"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the ``count`` patches that CLS attends to most in the selected layer."""
        return Choice(top(image.cls_attention(), count))
