"""The training sets of both stages, as LLaVA's JSON lists over the pictures on disk."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from playground.shapes.pictures import picture_name
from playground.shapes.questions import TURNS, Question, ask_description, ask_several
from playground.shapes.world import TRAIN, Scene, stream

# A picture returns with other questions once all have been used.
ROUND = 1_000_003


def stage1_sample(number: int, pictures: int) -> dict[str, Any]:
    """A picture and its description, in LLaVA's format."""
    seed = TRAIN[number % pictures]
    question = ask_description(Scene.from_seed(seed), stream(seed, "words"))
    return _sample(number, seed, [question])


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
    return _sample(number, seed, questions)


def write_json(samples: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a training set; the file exists afterwards only if it is complete."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(list(samples), indent=0))
    unfinished.rename(path)


def _sample(number: int, seed: int, questions: Sequence[Question]) -> dict[str, Any]:
    turns = []
    for index, question in enumerate(questions):
        image = "" if index else "<image>\n"
        turns.append({"from": "human", "value": image + question.text})
        turns.append({"from": "gpt", "value": question.answer})
    return {"id": f"shapes-{number}", "image": picture_name(seed), "conversations": turns}
