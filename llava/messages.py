"""What is asked and what is answered: the values that pass through the `Assistant`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from llava.engine.base import FinishReason, Generation
from llava.errors import UserError
from llava.image_io import load_image, to_rgb
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.multimodal_encoder.token_reduction import Reducer

ImageSource = Image.Image | np.ndarray | str | Path | Callable[[], Image.Image]
"""An image, or its values as `to_rgb` takes them, or its file, or a function that returns it; read when it is
needed."""

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")


def read_image(source: ImageSource) -> Image.Image:
    """Return the image that a source stands for.

    Raises:
        UserError: If it cannot be read.
    """
    if isinstance(source, str | Path):
        return load_image(source)
    if not callable(source):
        return to_rgb(source)
    try:
        image = source()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"an image cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(image, Image.Image):
        raise UserError(f"an image is expected, and a function returned {type(image).__name__}")
    return to_rgb(image)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: Who speaks; a system message comes first and replaces that of the template.
        text: The words; ``<image>`` may mark where each image belongs, else all of them come first.
        images: Images of this turn.
    """

    role: Role
    text: str
    images: tuple[ImageSource, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no model can read.

        Raises:
            UserError: If the role is unknown, the text is none, or somebody else than the user shows images.
        """
        if not isinstance(self.text, str):
            raise UserError(f"the text of a message is {type(self.text).__name__}; accepted: str")
        if self.role not in ROLES:
            raise UserError(f"a message is from {self.role!r}; accepted: {', '.join(ROLES)}")
        if not isinstance(self.images, Sequence) or isinstance(self.images, str | bytes):
            raise UserError(f"the images of a message are {type(self.images).__name__}; accepted: a tuple")
        if self.images and self.role != "user":
            raise UserError(f"a message from {self.role!r} has images; only those from 'user' can")


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to be continued.

    Attributes:
        messages: Turns of user and assistant, alternating, the last one the user's.
        token_reduction: Reducer for this request alone, or its setting as ``mm_vision_token_reduce_func`` has
            it; None for the model's.
        generation: How the answer is written.
        clip_text: What CLIP's text encoder reads, where that is not the last message's words.
        template: Name of a conversation template; None for the model's.
        id: Handed on to the answer.
        prompt: An already rendered prompt with one ``<image>`` per image, instead of rendering the messages.
    """

    messages: tuple[Message, ...]
    token_reduction: Reducer | str | None = None
    generation: Generation = field(default_factory=Generation)
    clip_text: str | None = None
    template: str | None = None
    id: Hashable = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        """Read the reduction's setting.

        Raises:
            UserError: If it is not accepted, or the turns do not alternate.
        """
        if not isinstance(self.generation, Generation):
            raise UserError(f"generation is {type(self.generation).__name__}; accepted: llava.Generation")
        for name in ("clip_text", "template", "prompt"):
            if not isinstance(value := getattr(self, name), str | None):
                raise UserError(f"{name} is {type(value).__name__}; accepted: str, or None")
        object.__setattr__(self, "messages", tuple(self.messages))
        if isinstance(self.token_reduction, str):
            object.__setattr__(self, "token_reduction", parse_reduction(self.token_reduction))
        turns = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        roles = [message.role for message in turns]
        if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
            raise UserError(
                f"the messages are from {', '.join(roles) or 'nobody'}; accepted: user and assistant by "
                "turns, the first and the last from the user, maybe after one from system"
            )

    @property
    def images(self) -> tuple[ImageSource, ...]:
        """Images of all turns."""
        return tuple(image for message in self.messages for image in message.images)

    @classmethod
    def ask(cls, text: str, *images: ImageSource, **settings: Any) -> Request:
        """Ask one question about images, or about none.

        Args:
            text: See `Message`.
            *images: See there.
            **settings: Attributes of the request.
        """
        return cls((Message("user", text, images),), **settings)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an answer cost. Work that several answers share counts for each with an equal share.

    Attributes:
        patches: Patches of all images.
        visual_tokens: Tokens of all images in the prompt.
        new_tokens: Tokens of the answer.
        vision_ms: Reading the images, preprocessing and vision encoder; only reading, if they were encoded
            before.
        reduction_ms: Text encoder and choice of patches.
        prefill_ms: Projector, embedding and the language model's first step; with beams the whole search.
        decode_ms: All other steps.
    """

    patches: int
    visual_tokens: int
    new_tokens: int
    vision_ms: float
    reduction_ms: float
    prefill_ms: float
    decode_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, its cost, and what the model saw.

    Attributes:
        text: Without leading or trailing whitespace.
        cost: Tokens and milliseconds.
        kept: Per image, which patches stayed as tokens of their own, bool (rows, columns).
        finish_reason: ``stop`` if the model ended it, ``length`` if ``max_new_tokens`` did.
        id: Of the request.
    """

    text: str
    cost: Cost
    kept: tuple[Tensor, ...]
    finish_reason: FinishReason
    id: Hashable = None


@dataclass(frozen=True, slots=True)
class Failure:
    """What stands in the place of an answer that could not be given.

    Attributes:
        error: Why.
        id: Of the request.
    """

    error: UserError
    id: Hashable = None


def answer_of(result: Answer | Failure) -> Answer:
    """Return what was answered.

    Raises:
        UserError: If there is no answer.
    """
    if isinstance(result, Failure):
        raise result.error
    return result
