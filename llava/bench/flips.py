"""How often rounding decides otherwise: ``python -m llava.bench.flips --images FOLDER``.

On a CPU in float32 an image keeps the same patches, and a question gets the same greedy answer, alone and in
any batch; other devices and dtypes round differently. This counts the patches, and the image-question pairs,
on which the reducer decides otherwise, and the answers that differ: in a batch instead of alone, and on this
device and dtype instead of float32 on the CPU.
"""

from __future__ import annotations

import sys
from itertools import product

import torch
from PIL import Image
from torch import Tensor

from llava.assistant import Assistant
from llava.bench.pictures import picture_paths
from llava.engine.base import Generation
from llava.image_io import load_image
from llava.messages import Failure, Request
from llava.mm_utils import process_images
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.options import CommandParser, add_model_options, load_assistant, positive
from llava.utils import exit_on_user_error

ANSWER_TOKENS = 32
QUESTIONS = ("What color is the star?", "Is there a red circle in the image?", "Describe the image.")


def kept_in_batches(tower: CLIPVisionTower, pixels: Tensor, questions: list[str], batch: int) -> Tensor:
    """Return which patches stay, bool (B, N), when (B, 3, height, width) pixels run ``batch`` at a time."""
    kept = [
        tower.select(pixels[start : start + batch], questions[start : start + batch]).kept
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(kept)


def count_flips(kept: Tensor, expected: Tensor) -> tuple[int, int]:
    """Compare two choices of patches, bool (B, N) each: return how many patches and pairs differ."""
    flipped = kept != expected
    return int(flipped.sum()), int(flipped.any(dim=1).sum())


def describe_flips(name: str, kept: Tensor, expected: Tensor) -> str:
    """Compare two choices of patches, bool (B, N) each, in one line."""
    patches, pairs = count_flips(kept, expected)
    return (
        f"{name:<44} {patches} of {kept.numel()} patches ({patches / kept.numel():.4%}), "
        f"{pairs} of {len(kept)} image-question pairs"
    )


def answers_in_batches(
    assistant: Assistant, pairs: list[tuple[Image.Image, str]], batch: int, new_tokens: int = ANSWER_TOKENS
) -> list[str]:
    """Return the greedy answers to image-question pairs that run ``batch`` at a time.

    Raises:
        UserError: If one cannot be answered.
    """
    generation = Generation(max_new_tokens=new_tokens)
    requests = (Request.ask(question, image, generation=generation) for image, question in pairs)
    answers = []
    for result in assistant.answer_all(requests, batch_size=batch):
        if isinstance(result, Failure):
            raise result.error
        answers.append(result.text)
    return answers


def count_differing(answers: list[str], expected: list[str]) -> int:
    """Compare two lists of answers, and return how many differ."""
    return sum(one != other for one, other in zip(answers, expected, strict=True))


def describe_answers(name: str, answers: list[str], expected: list[str]) -> str:
    """Compare two lists of answers in one line."""
    return f"{name:<44} {count_differing(answers, expected)} of {len(answers)} answers"


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
    paths = picture_paths(options.images)
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
    answers = answers_in_batches(assistant, pairs, 1)
    print(
        describe_answers(
            f"in batches of {options.batch} instead of alone",
            answers_in_batches(assistant, pairs, options.batch),
            answers,
        )
    )
    exact = kept_in_batches(tower.to(device="cpu", dtype=torch.float32), pixels, questions, 1)
    print(describe_flips("instead of float32 on the CPU, same weights", alone, exact))


if __name__ == "__main__":
    sys.exit(main())
