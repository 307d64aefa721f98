"""TRIM+DPP, ours: relevant patches that differ from each other, and TRIM's merged token.

TRIM keeps the most relevant patches, which may show one thing several times where a question names several.
Here they are chosen as CDPruner chooses, by a determinantal point process over relevance, but among the
tower's own patches: those that are dropped are never projected. The output is what TRIM's checkpoints know.

Shapes: N patches, k of which stay, D width of the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import ImageInputs, SelectionWithRest, cosine
from llava.model.multimodal_encoder.reducers.cdpruner import pick_determinant
from llava.model.multimodal_encoder.reducers.relevance import question_relevance
from llava.model.multimodal_encoder.token_reduction import keep_outliers


@dataclass(frozen=True, slots=True)
class TrimDPP(SelectionWithRest):
    """``TRIM+DPP:k``: k patches and the mean of the rest; ``-1``: as many as TRIM keeps."""

    name: ClassVar[str] = "TRIM+DPP"
    paper: ClassVar[str] = "-"
    adaptive: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = True
    needs_question: ClassVar[bool] = True

    def own_count(self, image: ImageInputs) -> int:
        """Count the outliers in relevance, as TRIM does."""
        return int(keep_outliers(image.relevance()[None]).sum())

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,)."""
        relevance = question_relevance(image.joint(), image.question())
        return pick_determinant(cosine(image.patches), relevance, count)
