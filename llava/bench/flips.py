"""How often rounding decides otherwise: ``python -m llava.bench.flips --images FOLDER``.

On a CPU in float32 an image keeps the same patches, and a question gets the same greedy answer, alone and in
any batch; other devices and dtypes round differently. This counts the patches, and the image-question pairs,
on which the reducer decides otherwise, and the answers that differ: in a batch instead of alone, and on this
device and dtype instead of float32 on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import product

import torch
from PIL import Image
from torch import Tensor

from llava.assistant import Assistant
from llava.bench.pictures import picture_paths
from llava.engine.base import Generation
from llava.image_io import load_image
from llava.messages import Request, answer_of
from llava.model.multimodal_encoder.reducers.registry import signals_of
from llava.model.prompt_encoder import PromptEncoder
from llava.options import CommandParser, add_model_options, load_assistant, positive
from llava.utils import exit_on_user_error

Pair = tuple[Image.Image, str]
"""An image in RGB and a question about it."""

ANSWER_TOKENS = 32
QUESTIONS = ("What color is the star?", "Is there a red circle in the image?", "Describe the image.")


def kept_in_batches(encoder: PromptEncoder, pairs: Sequence[Pair], batch: int) -> list[Tensor]:
    """Return which patches stay of each image-question pair, bool (N,), when ``batch`` run at a time.

    Of an image in several crops N counts the patches of all.
    """
    kept: list[Tensor] = []
    for start in range(0, len(pairs), batch):
        images, questions = zip(*pairs[start : start + batch], strict=True)
        pixels = [encoder.preprocess(image) for image in images]
        seen = encoder.encode(pixels, [image.size for image in images], signals_of([encoder.reducer]))
        reduced = encoder.reduce(seen, questions, [encoder.reducer] * len(seen))
        kept += [image.crops.kept.flatten() for image in reduced]
    return kept


def count_flips(kept: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[int, int]:
    """Compare two choices of patches, bool (N,) per pair: return how many patches and pairs differ."""
    flipped = [int((one != other).sum()) for one, other in zip(kept, expected, strict=True)]
    return sum(flipped), sum(map(bool, flipped))


def describe_flips(name: str, kept: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Compare two choices of patches, bool (N,) per pair, in one line."""
    patches, pairs = count_flips(kept, expected)
    of = sum(map(len, kept))
    return (
        f"{name:<44} {patches} of {of} patches ({patches / of:.4%}), "
        f"{pairs} of {len(kept)} image-question pairs"
    )


def choose_on_the_cpu(assistant: Assistant) -> None:
    """Take all that chooses patches to the CPU, in float32; the language model's layers stay."""
    assistant.use_cuda_graphs(False)  # they are of a GPU
    model = assistant.model.get_model()
    for part in (assistant.encoder.tower, model.mm_projector, model.embed_tokens):
        part.to(device="cpu", dtype=torch.float32)


def answers_in_batches(
    assistant: Assistant, pairs: Sequence[Pair], batch: int, new_tokens: int = ANSWER_TOKENS
) -> list[str]:
    """Return the greedy answers to image-question pairs that run ``batch`` at a time.

    Raises:
        UserError: If one cannot be answered.
    """
    generation = Generation(max_new_tokens=new_tokens)
    requests = (Request.ask(question, image, generation=generation) for image, question in pairs)
    return [answer_of(result).text for result in assistant.answer_all(requests, batch_size=batch)]


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
    encoder, tower = assistant.encoder, assistant.encoder.tower
    images = [load_image(path) for path in paths[: options.limit]]
    pairs = list(product(images, options.question or QUESTIONS))

    alone = kept_in_batches(encoder, pairs, 1)
    together = kept_in_batches(encoder, pairs, options.batch)
    share = float(torch.cat(alone).float().mean())
    print(f"{encoder.reducer}, {tower.device}, {tower.dtype}; kept on average {share:.1%}")
    print(describe_flips(f"in batches of {options.batch} instead of alone", together, alone))
    answers = answers_in_batches(assistant, pairs, 1)
    print(
        describe_answers(
            f"in batches of {options.batch} instead of alone",
            answers_in_batches(assistant, pairs, options.batch),
            answers,
        )
    )
    choose_on_the_cpu(assistant)
    exact = kept_in_batches(encoder, pairs, 1)
    print(describe_flips("instead of float32 on the CPU, same weights", alone, exact))


if __name__ == "__main__":
    sys.exit(main())
