"""What callers hand to a model, refused by type and shape in one sentence before anything computes with it.

Shapes: B prompts, L ids, I images, C crops of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from llava.errors import UserError

ACCEPTED_PIXELS = (
    "what process_images returns: a floating-point tensor (images, 3, height, width) or (images, crops, 3, "
    "height, width), or a list of (3, height, width) or (crops, 3, height, width)"
)


def describe(value: Any) -> str:
    """Say what a value is: a tensor's or array's shape and type, another's class, a list's first entry's."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and type {value.dtype}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {describe(value[0])}" if value else f"empty {type(value).__name__}"
    return type(value).__name__


def check_ids(input_ids: Any, attention_mask: Any = None, labels: Any = None) -> None:
    """Refuse ids that are not a batch (B, L) of whole numbers, and a mask or labels of another shape.

    Raises:
        UserError: If something is of another type or shape.
    """
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or not _is_whole(input_ids):
        _refuse("input_ids", input_ids, "a tensor (prompts, ids) of whole numbers")
    for name, value in (("attention_mask", attention_mask), ("labels", labels)):
        if value is not None and not (isinstance(value, Tensor) and value.shape == input_ids.shape):
            _refuse(name, value, f"a tensor of the ids' shape {tuple(input_ids.shape)}")


def check_images(images: Any) -> None:
    """Refuse what is neither (I, 3, height, width), (I, C, 3, height, width) nor a list of images' pixels.

    Raises:
        UserError: If it is of another type or shape.
    """
    if isinstance(images, Tensor):
        is_accepted = images.ndim in (4, 5)
    else:
        is_accepted = isinstance(images, Sequence) and all(
            isinstance(image, Tensor) and image.ndim in (3, 4) for image in images
        )
    if not is_accepted:
        _refuse("images", images, ACCEPTED_PIXELS)


def check_pixels(pixels: Any, side: int) -> None:
    """Refuse what is not a batch of one or more square images (I, 3, side, side) for a vision encoder.

    Raises:
        UserError: If it is of another type or shape.
    """
    is_accepted = isinstance(pixels, Tensor) and pixels.ndim == 4 and pixels.is_floating_point()
    if not (is_accepted and len(pixels) and tuple(pixels.shape[1:]) == (3, side, side)):
        accepted = f"a floating-point tensor (images, 3, {side}, {side}), as process_images makes it"
        _refuse("images", pixels, accepted)


def check_texts(texts: Any) -> None:
    """Refuse what is neither a text nor a list of texts, or of several texts per image.

    Raises:
        UserError: If it is anything else.
    """
    if not isinstance(texts, str) and not (isinstance(texts, Sequence) and all(map(_is_image_text, texts))):
        _refuse("texts", texts, "a text for all images, or a list with a text (or several) per image")


def _is_image_text(value: Any) -> bool:
    return isinstance(value, str) or (
        isinstance(value, Sequence) and all(isinstance(one, str) for one in value)
    )


def _is_whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _refuse(name: str, value: Any, accepted: str) -> NoReturn:
    raise UserError(f"{name} is {describe(value)}; accepted: {accepted}")
