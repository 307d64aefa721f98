"""One image as published reduction methods ask for it, from a CLIP tower and what is known around it.

Shapes: N patches, D width of the tower, E width of CLIP's joint space, D' width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llava.errors import UserError
from llava.mm_utils import Size
from llava.model.multimodal_encoder.reducers.base import Signal
from llava.model.multimodal_encoder.reducers.mmtok import content_words
from llava.model.multimodal_encoder.token_reduction import patch_relevance
from llava.model.splice import ImageText

if TYPE_CHECKING:
    from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a model knows of an image beside what its vision tower sees.

    Attributes:
        project: Maps (N, D) to (N, D'); None where the tower stands alone.
        embed_words: Maps words to the language model's embeddings, (m, D'); None likewise.
        size: Of the original image.
        is_padded: Whether the image was made square by padding.
    """

    project: Callable[[Tensor], Tensor] | None = None
    embed_words: Callable[[Sequence[str]], Tensor] | None = None
    size: Size | None = None
    is_padded: bool = False


ALONE = Surroundings()


class TowerImage:
    """The `ImageInputs` of one image; what two methods or two steps ask for is computed once.

    Args:
        tower: Has seen the image.
        patches: What it saw, (N, D).
        signals: What it gave up beside them.
        text: The question, or several.
        around: What else is known.
    """

    def __init__(
        self,
        tower: CLIPVisionTower,
        patches: Tensor,
        signals: Mapping[Signal, Tensor],
        text: ImageText | None,
        around: Surroundings = ALONE,
    ) -> None:
        self.patches = patches
        self._tower, self._signals, self._around = tower, signals, around
        self._text = text
        # Found once. Functions that remember would hold this object, and it them, until garbage is collected.
        self._next_layer: tuple[Tensor, Tensor] | None = None
        self._projected: Tensor | None = None
        self._question: Tensor | None = None

    def cls(self) -> Tensor:
        """Return the hidden state of CLS, (D,)."""
        return self._signals[Signal.CLS]

    def cls_attention(self) -> Tensor:
        """Return the attention of CLS to each patch, (N,)."""
        return self._signals[Signal.CLS_ATTENTION]

    def keys(self) -> Tensor:
        """Return keys of the patches, averaged over heads, (N, h)."""
        return self._signals[Signal.KEYS]

    def received_attention(self) -> tuple[Tensor, Tensor]:
        """Return the attention that each patch receives in two layers, (N,) twice."""
        early, selected = self._signals[Signal.RECEIVED_ATTENTION]
        return early, selected

    def next_layer(self) -> tuple[Tensor, Tensor]:
        """Return attention (N,) and keys (N, D) of the layer that reads the patches."""
        if self._next_layer is None:
            self._next_layer = self._tower.look_ahead(torch.cat([self.cls()[None], self.patches]))
        return self._next_layer

    def joint(self) -> Tensor:
        """Return the patches in CLIP's joint space, (N, E)."""
        return self._tower.join(self.patches)

    def relevance(self) -> Tensor:
        """Return TRIM's relevance, (N,)."""
        scores = self._tower.score_patches(self.patches[None], self.question().mean(dim=0, keepdim=True))
        return patch_relevance(scores)[0]

    def _texts(self) -> list[str]:
        if self._text is None:
            raise UserError(
                "the token reduction reads the question, and none was given: pass texts=, the question of "
                "each image"
            )
        return [self._text] if isinstance(self._text, str) else list(self._text)

    def question(self) -> Tensor:
        """Return the pooled, projected texts, (M, E): one, unless several were asked in a sample."""
        if self._question is None:
            self._question = self._tower.encode_texts(self._texts())
        return self._question

    def question_states(self) -> Tensor:
        """Return projected states of the texts at all positions of CLIP's context, (M, 77, E)."""
        encoder = self._tower.load_text_encoder()
        return torch.stack([encoder.states(text) for text in self._texts()])

    def words(self) -> Tensor:
        """Return the language model's embeddings of the texts' content words, (m, D')."""
        if self._around.embed_words is None:
            raise UserError(
                "this token reduction reads the language model's word embeddings, which the vision tower "
                "alone does not have; use it through the model"
            )
        return self._around.embed_words([word for text in self._texts() for word in content_words(text)])

    def projected(self) -> Tensor:
        """Return the patches behind the projector, (N, D')."""
        if self._around.project is None:
            raise UserError(
                "this token reduction judges projected patches, and the vision tower alone has no projector; "
                "use it through the model"
            )
        if self._projected is None:
            self._projected = self._around.project(self.patches)
        return self._projected

    def in_padding(self) -> Tensor:
        """Tell which patches lie wholly in what makes the image square, bool (N,)."""
        side = self._tower.num_patches_per_side
        inside = torch.zeros(side, side, dtype=torch.bool)
        if self._around.is_padded and self._around.size is not None:
            inside = padding_mask(self._around.size, side, self._tower.config.patch_size)
        return inside.flatten().to(self.patches.device)


def padding_mask(size: Size, side: int, patch: int) -> Tensor:
    """Mark the patches that lie wholly in the padding of an image that was made square; never all of them.

    The padding above, or on the left, is the smaller half, as in `llava.mm_utils.expand2square`.

    Args:
        size: Width and height of the image before.
        side: Patches along one side of the square.
        patch: Side of a patch in pixels.

    Returns:
        bool (side, side).
    """
    pixels, longer = side * patch, max(size)
    inside = torch.zeros(side, side, dtype=torch.bool)
    for axis, length in ((1, size[0]), (0, size[1])):
        empty = pixels - max(1, round(length * pixels / longer))
        before, behind = empty // 2 // patch, (empty - empty // 2) // patch
        lines = inside if axis == 0 else inside.T
        lines[:before] = True
        lines[side - behind :] = True
    return inside
