"""The training sets of both stages, as LLaVA's JSON lists over the pictures on disk.

``python -m playground.shapes.make_data --output FOLDER`` makes small ones to try training with.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava.errors import UserError
from llava.eval.files import write_json
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.shapes.pictures import draw_pictures, picture_name
from playground.shapes.questions import TURNS, Question, ask_description, ask_several
from playground.shapes.world import TRAIN, Scene, stream

# A picture returns with other questions once all have been used.
ROUND = 1_000_003


def stage1_sample(number: int, pictures: int) -> dict[str, Any]:
    """A picture and its description, in LLaVA's format."""
    seed = TRAIN[number % pictures]
    question = ask_description(Scene.from_seed(seed), stream(seed, "words"))
    return conversation_sample(number, seed, [question])


def stage2_sample(number: int, pictures: int, batch: int) -> dict[str, Any]:
    """Ten questions about a picture, or only one.

    Two batches in three hold single questions, because the turns of one sequence leak into each other. Long
    and short samples do not share a batch, in which the short ones would be padded; so the order of the file
    must be kept.
    """
    seed = TRAIN[number % pictures]
    scene = Scene.from_seed(seed)
    rng = stream(seed + number // pictures * ROUND, "words")
    single = number // batch % 3 > 0
    questions = ask_several(scene, rng, 1 if single else TURNS)
    if rng.random() < (0.06 if single else 0.3):
        questions[-1] = ask_description(scene, rng)
    return conversation_sample(number, seed, questions)


def conversation_sample(number: int, seed: int, questions: Sequence[Question]) -> dict[str, Any]:
    """Return questions about the picture of a seed, in LLaVA's format."""
    turns = []
    for index, question in enumerate(questions):
        image = "" if index else "<image>\n"
        turns.append({"from": "human", "value": image + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": f"shapes-{number}", "image": picture_name(seed), "conversations": turns}


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Draw pictures, and write captions and questions about them, as data to try training with."""
    parser = CommandParser(prog="python -m playground.shapes.make_data", description=main.__doc__)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for pictures/, captions.json and questions.json"
    )
    parser.add_argument("--pictures", type=positive, default=200, help="how many (default: 200)")
    options = parser.parse_args(argv)
    folder, count = options.output, options.pictures
    try:
        draw_pictures(folder / "pictures", count)
        write_json(folder / "captions.json", [stage1_sample(n, count) for n in range(count)], indent=0)
        write_json(folder / "questions.json", [stage2_sample(n, count, 1) for n in range(count)], indent=0)
    except OSError as error:
        raise UserError(f"nothing can be written to {folder}: {error.strerror}") from error
    print(f"{count} pictures, captions and conversations in {folder}")


if __name__ == "__main__":
    sys.exit(main())
