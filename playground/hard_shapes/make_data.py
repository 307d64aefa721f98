"""The training sets of both stages, as LLaVA's JSON lists over the pictures on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from playground.hard_shapes.questions import KINDS, TEMPLATES, ask, ask_several
from playground.hard_shapes.scene import TRAIN, Scene
from playground.hard_shapes.text_samples import SHORT_KINDS, TURNS, list_things
from playground.shapes.make_data import ROUND, conversation_sample
from playground.shapes.questions import Question, describe
from playground.shapes.world import stream


def stage1_sample(number: int, pictures: int) -> dict[str, Any]:
    """Return a picture with its description, or with the listing of all that its patches carry."""
    seed = TRAIN[number % pictures]
    scene = Scene.from_seed(seed)
    text = describe(scene) if number % 2 else list_things(scene)
    return conversation_sample(number, seed, [Question(TEMPLATES["description"][0], text, "description", ())])


def stage2_sample(number: int, pictures: int, batch: int, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
    """Return several questions about a picture, or only one.

    Every other batch holds several questions per picture, of which one pass over all patches learns the most;
    the rest hold one, as the model will be asked. Long and short samples do not share a batch.

    Args:
        number: Of the sample.
        pictures: On disk.
        batch: Samples of a step.
        kinds: That are asked.
    """
    seed = TRAIN[number % pictures]
    scene = Scene.from_seed(seed)
    rng = stream(seed + number // pictures * ROUND, "words")
    if number // batch % 2:
        questions = [ask(scene, rng, kinds[int(rng.integers(len(kinds)))])]
    else:
        short = [kind for kind in kinds if kind in SHORT_KINDS] or kinds
        questions = ask_several(scene, rng, TURNS, short)
    return conversation_sample(number, seed, questions)
