"""From images to pixels and from prompts to ids with image sentinels, under LLaVA's names."""

from __future__ import annotations

import ast
import base64
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase, StoppingCriteria

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.image_io import load_image_bytes, to_rgb
from llava.tokenizer import ids_and_spans

Size = tuple[int, int]
"""Width and height in pixels."""


def load_image_from_base64(image: str | bytes) -> Image.Image:
    """Decode an image from base64, as questions of MMBench and requests to a server carry it.

    Args:
        image: Base64; line breaks and other whitespace in it are not read.

    Raises:
        UserError: If this is not base64 or not an image.
    """
    try:
        text = image.encode("ascii") if isinstance(image, str) else image
        data = base64.b64decode(b"".join(text.split()), validate=True)
    except ValueError as error:  # binascii's error and that of text beyond ASCII are both of this type
        raise UserError(f"an image must be base64 text; got {image[:20]!r}...") from error
    return load_image_bytes(data)


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Pad the shorter side on both ends, so that the image stays in the middle of a square.

    Args:
        pil_img: An image; other modes become RGB, because only then three colors fit.
        background_color: Red, green and blue of the padding, 0 to 255.
    """
    image = to_rgb(pil_img)
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (side, side), background_color)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square


def mean_color(image_processor: Any) -> tuple[int, ...]:
    """Return CLIP's mean color (red, green, blue; 0 to 255), which normalization turns to about zero."""
    return tuple(int(mean * 255) for mean in image_processor.image_mean)


def process_images(
    images: Sequence[Image.Image | np.ndarray], image_processor: Any, model_cfg: Any
) -> Tensor | list[Tensor]:
    """Turn images into the vision tower's pixels.

    Args:
        images: Images of any mode, or their values; see `llava.image_io.to_rgb`.
        image_processor: CLIP's processor.
        model_cfg: The model's config; its ``image_aspect_ratio`` is ``pad`` (square with the mean color),
            ``anyres`` (tiles, with ``image_grid_pinpoints``), or anything else for CLIP's resize and crop.

    Returns:
        Pixels (B, 3, height, width), with ``anyres`` (B, 1 + tiles, 3, height, width); a list where the
        shapes differ.

    Raises:
        UserError: If ``images`` is no list of images, or an image cannot be used.
    """
    if not isinstance(images, Sequence) or isinstance(images, str):
        raise UserError(f"images is {type(images).__name__}; accepted: a list of images")
    aspect_ratio = getattr(model_cfg, "image_aspect_ratio", None)
    if aspect_ratio == "anyres":
        pinpoints = getattr(model_cfg, "image_grid_pinpoints", None)
        pixels = [process_anyres_image(image, image_processor, pinpoints) for image in images]
    else:
        pixels = [process_image(image, image_processor, aspect_ratio) for image in images]
    return torch.stack(pixels) if len({image.shape for image in pixels}) == 1 else pixels


def process_image(image: Image.Image | np.ndarray, image_processor: Any, aspect_ratio: str | None) -> Tensor:
    """Turn one image into pixels (3, height, width); ``pad`` makes it square first, see `process_images`."""
    image = to_rgb(image)
    if aspect_ratio == "pad":
        image = expand2square(image, mean_color(image_processor))
    _refuse_strips(image, image_processor)
    if not isinstance(image_processor, CLIPImageProcessorPil):
        return image_processor.preprocess(image, return_tensors="pt")["pixel_values"][0]
    resized = image_processor.preprocess(image, return_tensors="pt", do_rescale=False, do_normalize=False)
    values = resized["pixel_values"][0]  # 0 to 255
    table = _pixels_of_values(*map(_hashable, (getattr(image_processor, name) for name in VALUE_SETTINGS)))
    return table.gather(1, values.flatten(1).long()).view(values.shape)


VALUE_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def _hashable(setting: Any) -> Any:
    return tuple(setting) if isinstance(setting, list) else setting


@lru_cache(maxsize=16)
def _pixels_of_values(*settings: Any) -> Tensor:
    """Rescale and normalize each value that a channel may have, (3, 256).

    CLIP's processor does it, once for all images: its arithmetic on every pixel takes as long as resizing.
    """
    processor = CLIPImageProcessorPil(**dict(zip(VALUE_SETTINGS, settings, strict=True)))
    every = Image.fromarray(np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2))
    pixels = processor.preprocess(every, return_tensors="pt", do_resize=False, do_center_crop=False)
    return pixels["pixel_values"][0][:, 0]


def _refuse_strips(image: Image.Image, image_processor: Any) -> None:
    """Refuse an image that is resized by its shorter side, in pixels, until its longer one is too long.

    Raises:
        UserError: If it would have more pixels than Pillow accepts of a file.
    """
    width, height = image.size
    shorter = image_processor.size.get("shortest_edge")
    if shorter is None or not image_processor.do_resize or Image.MAX_IMAGE_PIXELS is None:
        return
    pixels = shorter * shorter * max(image.size) // min(image.size)
    if pixels > Image.MAX_IMAGE_PIXELS:
        raise UserError(
            f"an image of {width} x {height} would be resized to {pixels:,} pixels, more than "
            f"{Image.MAX_IMAGE_PIXELS:,}; image_aspect_ratio pad resizes the longer side"
        )


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """Choose the resolution that keeps most of an image's pixels, and of those the one that wastes least.

    Args:
        original_size: Width and height of the image.
        possible_resolutions: Widths and heights to choose from.
    """
    width, height = original_size

    def kept_and_waste(resolution: Size) -> tuple[int, int]:
        scale = min(resolution[0] / width, resolution[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - resolution[0] * resolution[1]

    return max(possible_resolutions, key=kept_and_waste)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Fit an image into a resolution, keeping its proportions, on black."""
    width, height = image.size
    scale = min(target_resolution[0] / width, target_resolution[1] / height)
    fitted = (
        min(math.ceil(width * scale), target_resolution[0]),
        min(math.ceil(height * scale), target_resolution[1]),
    )
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    canvas.paste(
        image.resize(fitted),
        ((target_resolution[0] - fitted[0]) // 2, (target_resolution[1] - fitted[1]) // 2),
    )
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cut an image into square tiles of ``patch_size`` pixels, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def get_anyres_image_grid_shape(
    image_size: Size, grid_pinpoints: str | Sequence[Size], patch_size: int
) -> tuple[int, int]:
    """Return how many tiles an image gets across and down.

    Args:
        image_size: Width and height of the image.
        grid_pinpoints: Resolutions to choose from, or their Python literal.
        patch_size: Side of a tile in pixels.
    """
    width, height = select_best_resolution(image_size, _pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def process_anyres_image(
    image: Image.Image | np.ndarray, processor: Any, grid_pinpoints: str | Sequence[Size] | None
) -> Tensor:
    """Turn an image into the pixels of a small whole and of its tiles.

    Args:
        image: An image.
        processor: CLIP's processor.
        grid_pinpoints: Resolutions to choose from, or their Python literal.

    Returns:
        Pixels (1 + tiles, 3, height, width).
    """
    image = to_rgb(image)
    resolution = select_best_resolution(image.size, _pinpoints(grid_pinpoints))
    tile = processor.crop_size["height"]
    if any(side % tile for side in resolution):
        raise UserError(
            f"image_grid_pinpoints has {resolution}; accepted: multiples of {tile}, a tile's side"
        )
    tiles = divide_to_patches(resize_and_pad_image(image, resolution), tile)
    # A processor that squeezes has a height and a width instead.
    side = processor.size.get("shortest_edge") or tile
    return torch.stack(
        [process_image(part, processor, None) for part in [image.resize((side, side)), *tiles]]
    )


def _pinpoints(grid_pinpoints: str | Sequence[Size] | None) -> list[Size]:
    """Read ``image_grid_pinpoints``, which a config may hold as text.

    Raises:
        UserError: If it is no list of resolutions.
    """
    try:
        values: Any = grid_pinpoints
        if isinstance(grid_pinpoints, str):
            values = ast.literal_eval(grid_pinpoints)
        return [(int(width), int(height)) for width, height in values]
    except (SyntaxError, TypeError, ValueError) as error:
        raise UserError(
            f"image_grid_pinpoints is {str(grid_pinpoints)[:80]!r}; accepted with image_aspect_ratio anyres: "
            "a list of widths and heights in pixels"
        ) from error


def tokenizer_image_token(
    prompt: str,
    tokenizer: PreTrainedTokenizerBase,
    image_token_index: int = IMAGE_TOKEN_INDEX,
    return_tensors: str | None = None,
) -> list[int] | Tensor:
    """Tokenize a prompt, with one sentinel where every ``<image>`` stood.

    Args:
        prompt: A rendered prompt.
        tokenizer: The language model's; each text between images is tokenized as a text of its own.
        image_token_index: The sentinel.
        return_tensors: ``pt`` for a tensor.

    Returns:
        Ids (L,), as a list or a long tensor; BOS only once, in front.

    Raises:
        UserError: If the prompt is no text.
        ValueError: If ``return_tensors`` is anything else.
        UserError: If the prompt holds what is no character.
    """
    if not isinstance(prompt, str):
        raise UserError(f"the prompt is {type(prompt).__name__}; accepted: str")
    ids, _ = ids_and_spans(prompt, tokenizer)
    if image_token_index != IMAGE_TOKEN_INDEX:
        ids = [image_token_index if token == IMAGE_TOKEN_INDEX else token for token in ids]
    if return_tensors is None:
        return ids
    if return_tensors != "pt":
        raise ValueError(f"return_tensors is 'pt' or None, got {return_tensors!r}")
    return torch.tensor(ids, dtype=torch.long)


def get_model_name_from_path(model_path: str | Path) -> str:
    """Return the last part of a path, with its parent's name in front if it is a ``checkpoint-*`` folder."""
    parts = str(model_path).strip("/").split("/")
    return "_".join(parts[-2:]) if parts[-1].startswith("checkpoint-") else parts[-1]


class KeywordsStoppingCriteria(StoppingCriteria):
    """Stops a sequence once one of some words was generated.

    Args:
        keywords: Words, such as a template's separator.
        tokenizer: The language model's.
        input_ids: The prompt's ids, (B, L); they are left out of the search if the output repeats them.
    """

    def __init__(
        self, keywords: Sequence[str], tokenizer: PreTrainedTokenizerBase, input_ids: Tensor
    ) -> None:
        self.keywords = list(keywords)
        self.tokenizer = tokenizer
        self.input_ids = input_ids
        longest = max(
            len(tokenizer(keyword, add_special_tokens=False).input_ids) for keyword in self.keywords
        )
        # One more than the longest keyword, because it may share its first token with what precedes it.
        self.window = longest + 1

    def call_for_batch(self, output_ids: Tensor, scores: Tensor, **kwargs: Any) -> bool:
        """Tell whether all sequences (B, L) have ended: LLaVA's name."""
        return bool(self(output_ids, scores, **kwargs).all())

    def __call__(self, output_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Tell per sequence whether it has ended.

        Args:
            output_ids: What was generated so far, (B, L).
            scores: Unused.
            **kwargs: Unused.

        Returns:
            bool (B,).
        """
        prompt = self.input_ids.to(output_ids.device)
        length = prompt.shape[1]
        repeated = output_ids.shape[1] >= length and torch.equal(output_ids[:, :length], prompt)
        generated = output_ids[:, length:] if repeated else output_ids
        tails = self.tokenizer.batch_decode(generated[:, -self.window :], skip_special_tokens=False)
        ended = [any(keyword in tail for keyword in self.keywords) for tail in tails]
        return torch.tensor(ended, device=output_ids.device)
