"""Relevance to the question as CDPruner and EADP take it: opposed to CLIP's similarity, as TRIM's is.

Shapes: N patches, E width of CLIP's joint space, M pieces of the question, P positions of CLIP's context.
"""

from __future__ import annotations

from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import cosine

MARGIN = 1e-6
"""What keeps the least relevant patch above 0, and a span of 0 from dividing."""


def opposition(joint: Tensor, texts: Tensor) -> Tensor:
    """Return the negative cosine of patches (N, E) with each of some texts (P, E), float32 (N, P).

    The papers' formulas have no minus, the published codes do: patches of a contrastively trained ViT tend to
    oppose the text that they depict.
    """
    return -cosine(joint, texts)
