"""What is asked, what is seen and what is answered: the values that pass through the `Assistant`.

Shapes: C crops of a picture (one, unless it was cut for ``anyres``), N patches per crop, D tower width.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from llava.model.multimodal_encoder.token_reduction import Reducer
from llava.model.prompt_encoder import EncodedImage


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the pictures it is about.

    Attributes:
        text: The user's words; ``<image>`` may mark where each picture belongs, else all of them come first.
        images: Pictures in RGB.
        token_reduction: Setting for this question alone, as ``mm_vision_token_reduce_func``; None for the
            model's.
    """

    text: str
    images: tuple[Image.Image, ...] = ()
    token_reduction: str | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost. Of a batch, every answer bears an equal share of its milliseconds.

    Attributes:
        patches: Patches of all pictures.
        visual_tokens: Tokens of all pictures in the prompt.
        new_tokens: Tokens of the answer.
        vision_ms: Preprocessing and vision encoder; 0 if the pictures were seen before.
        reduction_ms: Text encoder and choice of patches.
        first_token_ms: Projector, embedding and the language model's first step; with beams the whole search.
        rest_ms: All other steps.
    """

    patches: int
    visual_tokens: int
    new_tokens: int
    vision_ms: float
    reduction_ms: float
    first_token_ms: float
    rest_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, its cost, and what the model saw.

    Attributes:
        text: Without surrounding blanks.
        cost: Tokens and milliseconds.
        kept: Per picture, which patches stayed as tokens of their own, bool (rows, columns).
    """

    text: str
    cost: Cost
    kept: tuple[Tensor, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt to be continued.

    Attributes:
        prompt: Rendered conversation with one ``<image>`` per picture.
        question: What CLIP sees.
        images: The pictures.
        reducer: Of this turn.
    """

    prompt: str
    question: str
    images: tuple[EncodedImage, ...]
    reducer: Reducer

    @property
    def patches(self) -> int:
        """Patches of all pictures."""
        return sum(image.patches.shape[0] * image.patches.shape[1] for image in self.images)
