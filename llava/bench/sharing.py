"""What questions save that share work: one picture, and one batch: ``python -m llava.bench.sharing``.

Prints two comparisons, each with the settings taking turns: six questions about one picture against six about
a picture each, to the first token of each; and questions about different pictures in batches against one at a
time, whose answers must be the same.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from itertools import cycle, islice

from PIL.Image import Image

from llava.assistant import Assistant
from llava.bench.model_sizes import MODEL_SIZES
from llava.bench.pictures import random_pictures
from llava.bench.subject import load_subject
from llava.engine.base import Generation
from llava.engine.stopwatch import Stopwatch
from llava.engine.transformers_engine import TransformersEngine
from llava.messages import Request, answer_of
from llava.options import CommandParser, add_model_options, positive
from llava.utils import exit_on_user_error

QUESTIONS = tuple(
    f"What is the {word} doing?\nAnswer the question using a single word or phrase."
    for word in ("man", "dog", "child", "bird", "woman", "horse")
)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print.

    Raises:
        UserError: If the model cannot be loaded.
    """
    parser = CommandParser(prog="python -m llava.bench.sharing", description=__doc__)
    parser.add_argument("--random", choices=MODEL_SIZES, help="random weights of this size, no checkpoint")
    parser.add_argument("--batch", type=positive, default=16, help="questions in a batch (default: 16)")
    parser.add_argument("--new-tokens", type=positive, default=8, help="of an answer in a batch (default: 8)")
    parser.add_argument("--turns", type=positive, default=3, help="of every setting (default: 3)")
    add_model_options(parser)
    options = parser.parse_args(argv)

    assistant = load_subject(options)
    if options.token_reduction is not None:
        assistant.model.set_token_reduction(options.token_reduction)
    pictures = random_pictures(max(options.batch, len(QUESTIONS)))
    print(f"{options.random or options.model_path or 'the bundled model'}, {assistant.encoder.reducer}")

    one, six = ask(len(QUESTIONS), pictures[:1], 1), ask(len(QUESTIONS), pictures, 1)
    turns = [(seconds(assistant, one, 1)[0], seconds(assistant, six, 1)[0]) for _ in range(options.turns + 1)]
    report("six questions to their first tokens, about one picture against six", turns[1:])

    mixed = ask(options.batch, pictures, options.new_tokens)
    turns, different = [], 0
    for _ in range(options.turns + 1):
        together, answers = seconds(assistant, mixed, options.batch)
        apart, expected = seconds(assistant, mixed, 1)
        turns.append((together, apart))
        different += sum(map(str.__ne__, answers, expected))
    report(f"{options.batch} questions about as many pictures, in a batch against one at a time", turns[1:])
    print(f"answers that differ: {different} of {len(turns) * options.batch}")
    engine = assistant.engine
    if isinstance(engine, TransformersEngine):
        share = engine.padded_positions / engine.prefilled_positions
        print(f"padding: {share:.1%} of the {engine.prefilled_positions:,} positions of all prompts")


def ask(count: int, images: Sequence[Image], new_tokens: int) -> list[Request]:
    """Ask so many questions about images, again from the first question and image where there are fewer."""
    pairs = islice(zip(cycle(QUESTIONS), cycle(images), strict=False), count)
    generation = Generation(max_new_tokens=new_tokens)
    return [Request.ask(text, image, generation=generation) for text, image in pairs]


def seconds(assistant: Assistant, requests: Sequence[Request], batch: int) -> tuple[float, list[str]]:
    """Answer requests with nothing kept of earlier ones; return how long it took and the answers."""
    assistant.clear_caches()
    watch = Stopwatch(assistant.encoder.device)
    answers = [answer_of(result).text for result in assistant.answer_all(requests, batch)]
    return watch.lap() / 1000, answers


def report(what: str, turns: Sequence[tuple[float, float]]) -> None:
    """Print the medians of two settings and the median of their ratios, with the lowest and highest."""
    first, second = (statistics.median(column) for column in zip(*turns, strict=True))
    ratios = sorted(one / other for one, other in turns)
    print(
        f"{what}: {first:.2f} s, {second:.2f} s; ratio {statistics.median(ratios):.3f} "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
