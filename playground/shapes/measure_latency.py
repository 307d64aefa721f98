"""Ask a model one question at a time with several settings of the reducer, and compare the milliseconds.

`playground.shapes.measure` answers in batches, where answers share costs; here every answer runs alone. The
settings take turns on every question, so that whatever else slows the machine down hits all of them alike.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.markdown import markdown_table
from llava.messages import Request, answer_of
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.shapes.measure import describe_machine, held_out_questions, write_numbers

WARM_UP = 5  # questions asked before those that count


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one answer; `median_latency` gives the medians of many.

    Attributes:
        vision: Preprocessing and vision encoder.
        reduction: Text encoder and choice of patches.
        prefill: Projector and the language model's first step.
        first_token: The three above together.
        answer: Wall time of the whole answer.
    """

    vision: float
    reduction: float
    prefill: float
    first_token: float
    answer: float


def measure_latency(assistant: Assistant, reductions: Sequence[str], count: int) -> dict[str, Latency]:
    """Return the medians over ``count`` held-out questions per setting of the reducer.

    Args:
        assistant: A loaded model.
        reductions: Settings as ``mm_vision_token_reduce_func`` has them.
        count: Questions, each about an image of its own; every setting is asked all of them.
    """
    laps: dict[str, list[Latency]] = {reduction: [] for reduction in reductions}
    for number, (scene, question) in enumerate(held_out_questions(WARM_UP + count)):
        image = scene.render()
        start = number % len(reductions)  # another one goes first each time
        for reduction in [*reductions[start:], *reductions[:start]]:
            request = Request.ask(
                question.text, image, token_reduction=reduction, generation=Generation(max_new_tokens=12)
            )
            laps[reduction].append(time_answer(assistant, request))
    return {reduction: median_latency(row[WARM_UP:]) for reduction, row in laps.items()}


def time_answer(assistant: Assistant, request: Request) -> Latency:
    """Answer a request alone, its question as new as its image.

    Raises:
        UserError: If it cannot be answered.
    """
    assistant.encoder.tower.clear_text_cache()
    began = time.perf_counter()
    (result,) = assistant.answer_all([request])
    milliseconds = 1000 * (time.perf_counter() - began)
    cost = answer_of(result).cost
    first_token = cost.vision_ms + cost.reduction_ms + cost.prefill_ms
    return Latency(cost.vision_ms, cost.reduction_ms, cost.prefill_ms, first_token, milliseconds)


def median_latency(laps: Sequence[Latency]) -> Latency:
    """Return the median of each number on its own."""
    return Latency(**{name: median(getattr(lap, name) for lap in laps) for name in Latency.__slots__})


def report(results: dict[str, Latency]) -> str:
    """The results as a Markdown table, with ratios to the last row in brackets."""
    *_, last = results.values()
    rows = []
    for name, lap in results.items():
        parts = [f"{part:.1f} ms" for part in (lap.vision, lap.reduction, lap.prefill)]
        first = f"{lap.first_token:.1f} ms ({lap.first_token / last.first_token:.2f})"
        answer = f"{lap.answer:.1f} ms ({lap.answer / last.answer:.2f})"
        rows.append([f"`{name}`", *parts, first, answer])
    return markdown_table(["reduction", "vision", "reduction", "prefill", "first token", "answer"], rows)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure a checkpoint and print a table."""
    parser = CommandParser(
        prog="python -m playground.shapes.measure_latency",
        description="Milliseconds of single answers; in brackets, the ratio to the last setting.",
    )
    parser.add_argument("--model-path", help="default: the shipped checkpoint")
    parser.add_argument(
        "--token-reduction",
        nargs="+",
        default=["TRIM:-1", "none"],
        help="settings of the reducer to compare; ratios are to the last one",
    )
    parser.add_argument("--questions", type=positive, default=100, help="each is about an image of its own")
    parser.add_argument("--device", help="default: the one the model chooses")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args(argv)
    assistant = Assistant.load(arguments.model_path, device=arguments.device)
    results = measure_latency(assistant, arguments.token_reduction, arguments.questions)
    print(report(results))
    rows = {reduction: asdict(latency) for reduction, latency in results.items()}
    write_numbers({"machine": describe_machine(), "milliseconds": rows}, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
