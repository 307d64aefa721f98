"""How often a patch flips between kept and dropped: ``python -m llava.bench.flips --images FOLDER``.

On a CPU in float32 an image keeps the same patches alone and in any batch; other devices and types round
differently. This counts the patches, and the image-question pairs, on which the reducer decides otherwise:
in a batch instead of alone, and on this device and type instead of float32 on the CPU.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from llava.errors import MissingFileError
from llava.image_io import load_image
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.options import CommandParser, add_model_options, load_assistant, positive
from llava.utils import exit_on_user_error

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
QUESTIONS = ("What color is the star?", "Is there a red circle in the image?", "Describe the image.")


def kept_in_batches(tower: CLIPVisionTower, pixels: Tensor, questions: list[str], batch: int) -> Tensor:
    """Return which patches stay, bool (B, N), when (B, 3, H, W) pixels run ``batch`` at a time."""
    kept = [
        tower(pixels[start : start + batch], questions[start : start + batch]).kept.cpu()
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(kept)


def describe_flips(name: str, kept: Tensor, expected: Tensor) -> str:
    """Compare two choices of patches, bool (B, N) each, in one line."""
    flipped = kept != expected
    pairs = int(flipped.any(dim=1).sum())
    share = float(flipped.float().mean())
    return (
        f"{name:<44} {int(flipped.sum())} of {flipped.numel()} patches ({share:.4%}), "
        f"{pairs} of {len(flipped)} image-question pairs"
    )


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Count how often the reducer decides otherwise in a batch, and on this device and type."""
    parser = CommandParser(prog="python -m llava.bench.flips", description=main.__doc__)
    add_model_options(parser)
    parser.add_argument("--images", required=True, help="folder of images")
    parser.add_argument("--limit", type=positive, default=32, help="images to use (default: 32)")
    parser.add_argument("--batch", type=positive, default=16, help="pairs in a batch (default: 16)")
    parser.add_argument("--question", action="append", help="question to ask, may be repeated")
    options = parser.parse_args(arguments)
    paths = sorted(path for path in Path(options.images).glob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise MissingFileError(f"no images in {options.images!r} (looked for {', '.join(PICTURES)})")
    assistant = load_assistant(options)
    tower = assistant.model.get_vision_tower()
    assert tower is not None
    images = [load_image(path) for path in paths[: options.limit]]
    pairs = list(product(images, options.question or QUESTIONS))
    pixels = torch.stack(
        list(process_images([image for image, _ in pairs], assistant.image_processor, assistant.model.config))
    )
    questions = [question for _, question in pairs]

    alone = kept_in_batches(tower, pixels, questions, 1)
    together = kept_in_batches(tower, pixels, questions, options.batch)
    share = float(alone.float().mean())
    print(f"{tower.token_reduction}, {tower.device}, {tower.dtype}; kept on average {share:.1%}")
    print(describe_flips(f"in batches of {options.batch} instead of alone", together, alone))
    exact = kept_in_batches(tower.to(device="cpu", dtype=torch.float32), pixels, questions, 1)
    print(describe_flips("instead of float32 on the CPU, same weights", alone, exact))


if __name__ == "__main__":
    sys.exit(main())
