"""Arranging the crops of a high-resolution image (LLaVA-1.6's ``anyres``) into one stretch of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava.errors import UserError
from llava.mm_utils import get_anyres_image_grid_shape


def arrange_crops(
    crops: Sequence[Tensor],
    side: int,
    image_size: tuple[int, int] | None,
    newline: Tensor | None,
    config: Any,
    vision_config: Any,
) -> Tensor:
    """Put the whole image's tokens first, then those of its tiles row by row as they lie on the image.

    Args:
        crops: Tokens of the whole image and of its tiles, (side * side, H) each.
        side: Patches along one side of a crop.
        image_size: Width and height of the original in pixels.
        newline: Token that ends every row, (H,), for the ``unpad`` merge types; the padding is then cut off.
        config: Names ``image_aspect_ratio`` and ``image_grid_pinpoints``.
        vision_config: Names the tower's ``image_size`` in pixels.

    Returns:
        (n, H).

    Raises:
        UserError: If the image was not cut for ``anyres``.
    """
    whole, tiles = crops[0], crops[1:]
    if not tiles:
        return whole if newline is None else torch.cat([whole, newline.unsqueeze(0).to(whole)])
    ratio = getattr(config, "image_aspect_ratio", None)
    if ratio != "anyres" or image_size is None:
        raise UserError(
            f"mm_patch_merge_type {config.mm_patch_merge_type!r} with several crops needs image_aspect_ratio "
            f"'anyres' and image_sizes; got {ratio!r} and {image_size}"
        )
    columns, rows = get_anyres_image_grid_shape(
        image_size, config.image_grid_pinpoints, vision_config.image_size
    )
    grid = torch.stack(list(tiles)).unflatten(0, (rows, columns)).unflatten(2, (side, side))
    image = grid.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # (rows * side, columns * side, H)
    if newline is not None:
        image = cut_padding(image, image_size)
        ends = newline.to(image).expand(len(image), 1, -1)
        image = torch.cat([image, ends], dim=1)
    return torch.cat([whole, image.flatten(0, 1)])


def cut_padding(image: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Cut a padded grid of tokens (rows, columns, H) to the original's proportions, width by height."""
    rows, columns = image.shape[:2]
    width, height = image_size
    if width / height > columns / rows:
        used = int(height * columns / width)
        start = (rows - used) // 2
        return image[start : rows - start]
    used = int(width * rows / height)
    start = (columns - used) // 2
    return image[:, start : columns - start]
