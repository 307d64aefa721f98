"""TRIM+DPP, ours: relevant patches that differ from each other, and TRIM's merged token.

TRIM keeps the most relevant patches, which may show one thing several times where a question names several.
Here they are chosen as CDPruner chooses, by a determinantal point process over relevance, but among the
tower's own patches: those that are dropped are never projected. The output is what TRIM's checkpoints know.

Shapes: N patches, k of which stay, D width of the tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from llava.model.multimodal_encoder.reducers.base import Budgeted, Choice, ImageInputs, cosine
from llava.model.multimodal_encoder.reducers.cdpruner import pick_determinant
from llava.model.multimodal_encoder.reducers.relevance import question_relevance
from llava.model.multimodal_encoder.token_reduction import keep_outliers, order_and_merge


@dataclass(frozen=True, slots=True)
class TrimDPP(Budgeted):
    """``TRIM+DPP:k``: k patches and the mean of the rest; ``-1``: as many as TRIM keeps."""

    name: ClassVar[str] = "TRIM+DPP"
    paper: ClassVar[str] = "-"
    adaptive: ClassVar[bool] = True
    adds_rest: ClassVar[bool] = True
    needs_patches: ClassVar[bool] = True
    needs_question: ClassVar[bool] = True

    def own_count(self, image: ImageInputs) -> int:
        """Count the outliers in relevance, as TRIM does."""
        return int(keep_outliers(image.relevance()[None]).sum())

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep ``count`` patches and merge the others."""
        relevance = question_relevance(image.joint(), image.question())
        picked = pick_determinant(cosine(image.patches), relevance, count)
        keep = torch.zeros(1, len(image.patches), dtype=torch.bool, device=picked.device)
        keep[0, picked] = True
        ordered, merged = order_and_merge(image.patches[None], keep)
        return Choice(picked.sort().values, torch.cat([ordered[0, :count], merged]))
