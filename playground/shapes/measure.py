"""Ask a model single questions about held-out pictures, and count the right answers per kind of question.

Questions are answered in batches, which share costs: what one answer costs says
`playground.shapes.measure_latency`.
"""

import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.errors import UserError
from llava.markdown import markdown_table
from llava.messages import Request, answer_of
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.shapes.questions import KINDS, Question, ask
from playground.shapes.world import HELD_OUT, Scene, stream

COLUMNS = (*KINDS, "all")


@dataclass(frozen=True, slots=True)
class Result:
    """What a model scored with one setting of the reducer.

    Attributes:
        reduction: The setting.
        right: Right answers per kind of question, and under ``all`` over all of them, as shares.
        questions: Questions per kind, likewise.
        visual_tokens: Mean visual tokens per question, the merged one included.
        seconds: Wall time of all answers.
    """

    reduction: str
    right: dict[str, float]
    questions: dict[str, int]
    visual_tokens: float
    seconds: float

    def row(self) -> list[str]:
        """A row of the table; few questions may not be of all kinds."""
        shares = [f"{self.right[kind]:.1%}" if kind in self.right else "-" for kind in COLUMNS]
        return [f"`{self.reduction}`", *shares, f"{self.visual_tokens:.1f}"]


def held_out_questions(count: int) -> Iterator[tuple[Scene, Question]]:
    """One question per held-out picture, the kinds in turn."""
    for number, seed in enumerate(HELD_OUT[:count]):
        scene = Scene.from_seed(seed)
        yield scene, ask(scene, stream(seed, "words"), KINDS[number % len(KINDS)])


def measure(assistant: Assistant, reduction: str, count: int) -> Result:
    """Ask ``count`` held-out questions of a loaded model; ``reduction`` is what it was loaded with."""
    asked = list(held_out_questions(count))
    generation = Generation(max_new_tokens=12)
    requests = (
        Request.ask(question.text, scene.render(), generation=generation) for scene, question in asked
    )
    right: dict[str, list[bool]] = defaultdict(list)
    tokens: list[int] = []
    began = time.monotonic()
    results = tqdm(assistant.answer_all(requests), desc=reduction, total=count, mininterval=5)
    for (_, question), result in zip(asked, results, strict=True):
        answer = answer_of(result)
        correct = is_right(answer.text, question.answer)
        right[question.kind].append(correct)
        right["all"].append(correct)
        tokens.append(answer.cost.visual_tokens)
    return Result(
        reduction=reduction,
        right={kind: sum(row) / len(row) for kind, row in right.items()},
        questions={kind: len(row) for kind, row in right.items()},
        visual_tokens=sum(tokens) / len(tokens),
        seconds=time.monotonic() - began,
    )


def is_right(said: str, answer: str) -> bool:
    """Whether what a model said is the answer; case, blanks and a final full stop do not matter."""
    return said.strip().rstrip(".").lower() == answer


def report(results: Sequence[Result]) -> str:
    """The results as a Markdown table."""
    return markdown_table(["reduction", *COLUMNS, "visual tokens"], [result.row() for result in results])


def write_numbers(numbers: dict[str, Any], path: Path | None) -> None:
    """Write what was measured as JSON, if a file for it was named.

    Raises:
        UserError: If it cannot be written.
    """
    if path is None:
        return
    try:
        path.write_text(json.dumps(numbers, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"the numbers could not be written to {path}: {error.strerror}") from error


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure a checkpoint with several settings of the reducer."""
    parser = CommandParser(
        prog="python -m playground.shapes.measure",
        description="Accuracy of a shapes model on held-out single questions.",
    )
    parser.add_argument("--model-path", help="default: the shipped checkpoint")
    parser.add_argument(
        "--token-reduction", nargs="+", default=["none", "TRIM:-1"], help="settings of the reducer to compare"
    )
    parser.add_argument("--questions", type=positive, default=2400, help="each is about a picture of its own")
    parser.add_argument("--device", help="default: the one the model chooses")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args(argv)
    results = []
    for reduction in arguments.token_reduction:
        assistant = Assistant.load(arguments.model_path, token_reduction=reduction, device=arguments.device)
        results.append(measure(assistant, reduction, arguments.questions))
    print(report(results))
    write_numbers(_document(results), arguments.output)


def describe_machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _document(results: Sequence[Result]) -> dict[str, Any]:
    rows = [{name: getattr(result, name) for name in Result.__slots__} for result in results]
    return {"machine": describe_machine(), "first_seed": HELD_OUT[0], "results": rows}


if __name__ == "__main__":
    sys.exit(main())
