"""Questions per second of the evaluation's runner, against a loop that asks one question at a time.

There are several questions about each image, which the runner encodes once and answers in batches, and the
loop encodes for every question anew: the assistant forgets what it keeps before each question of the loop
and before each turn of the runner. The answers must be the same. Both take turns, so that whatever else slows
the machine down hits both alike.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from llava.assistant import Assistant
from llava.bench.model_sizes import LANGUAGE_MODELS
from llava.bench.random_llava import random_assistant
from llava.constants import SHORT_ANSWER
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.benchmark import Question
from llava.eval.processes import Processes
from llava.eval.runner import Plan, ask_questions, request_for
from llava.messages import answer_of
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.shapes.measure import describe_machine, write_numbers
from playground.shapes.questions import ask_several
from playground.shapes.world import HELD_OUT, Scene, stream

QUESTIONS_PER_IMAGE = 6
FIRST_SEED = 6_000_000


@dataclass(frozen=True, slots=True)
class Throughput:
    """Medians of several turns.

    Attributes:
        questions: Of a turn.
        loop: Questions per second, one at a time.
        runner: Questions per second of the runner at its default settings.
        ratio: Median of the turns' ratios, and the lowest and highest.
    """

    questions: int
    loop: float
    runner: float
    ratio: tuple[float, float, float]


def write_questions(folder: Path, images: int) -> list[Question]:
    """Draw held-out scenes, and ask six questions about each."""
    questions = []
    for number, seed in enumerate(HELD_OUT[FIRST_SEED : FIRST_SEED + images]):
        scene, path = Scene.from_seed(seed), folder / f"{number}.png"
        scene.render().save(path)
        asked = ask_several(scene, stream(seed, "words"), QUESTIONS_PER_IMAGE)
        texts = [question.text.removesuffix(f"\n{SHORT_ANSWER}") for question in asked]
        questions += [Question(f"{number}-{turn}", text, path) for turn, text in enumerate(texts)]
    return questions


def measure(
    assistant: Assistant, questions: Sequence[Question], generation: Generation, turns: int
) -> Throughput:
    """Let the loop and the runner take turns, after one turn to warm up.

    Raises:
        UserError: If a question cannot be answered, or the answers differ.
    """
    with tempfile.TemporaryDirectory() as folder:

        def plan(turn: int) -> Plan:
            return Plan("runner", Path(folder) / f"{turn}.jsonl", "m", "vicuna_v1", generation)

        def loop(turn: int) -> list[str]:
            answers = []
            for question in questions:
                assistant.clear_caches()
                (result,) = assistant.answer_all([request_for(question, plan(turn))])
                answers.append(answer_of(result).text)
            return answers

        def runner(turn: int) -> list[str]:
            assistant.clear_caches()
            asked = ask_questions(questions, assistant, plan(turn), Processes())
            return [response.text for response in asked.responses]

        pairs = [(_timed(loop, turn), _timed(runner, turn)) for turn in range(turns + 1)]
    if any(slow[1] != fast[1] for slow, fast in pairs):
        raise UserError("the runner's answers differ from those of the loop")
    seconds = [(slow[0], fast[0]) for slow, fast in pairs[1:]]
    ratios = [slow / fast for slow, fast in seconds]
    return Throughput(
        questions=len(questions),
        loop=len(questions) / median(slow for slow, _ in seconds),
        runner=len(questions) / median(fast for _, fast in seconds),
        ratio=(median(ratios), min(ratios), max(ratios)),
    )


def _timed(answer: Callable[[int], list[str]], turn: int) -> tuple[float, list[str]]:
    began = time.perf_counter()
    answers = answer(turn)
    return time.perf_counter() - began, answers


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure the bundled model, or one with random weights."""
    parser = CommandParser(prog="python -m playground.shapes.measure_evaluation", description=main.__doc__)
    parser.add_argument("--random", choices=LANGUAGE_MODELS, help="a model of this size with random weights")
    parser.add_argument("--token-reduction", default="TRIM:-1", help="default: TRIM:-1")
    parser.add_argument("--images", type=positive, default=32, help="six questions each (default: 32)")
    parser.add_argument("--new-tokens", type=positive, default=16, help="of an answer at most (default: 16)")
    parser.add_argument("--turns", type=positive, default=3, help="default: 3")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args(argv)
    if options.random:
        sizes = LANGUAGE_MODELS[options.random]
        assistant = random_assistant(sizes, reduction=options.token_reduction)
    else:
        assistant = Assistant.load(token_reduction=options.token_reduction, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        questions = write_questions(Path(folder), options.images)
        found = measure(assistant, questions, Generation(max_new_tokens=options.new_tokens), options.turns)
    middle, low, high = found.ratio
    print(
        f"{found.questions} questions, six an image: one at a time {found.loop:.2f} per second, the runner "
        f"{found.runner:.2f}; ratio {middle:.2f} ({low:.2f} to {high:.2f}); the answers are the same"
    )
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    write_numbers({"machine": describe_machine(), "settings": settings, **asdict(found)}, options.output)


if __name__ == "__main__":
    sys.exit(main())
