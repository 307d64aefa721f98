"""Ask of a small CLIP what the reducer asks: which patches stay for a text, and are they what it names?"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from llava.model.checkpoint_files import resolve_folder
from llava.model.multimodal_encoder.token_reduction import keep_outliers, patch_relevance
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.hard_shapes import questions as hard_questions
from playground.hard_shapes import scene as hard_scene
from playground.hard_shapes.clip_batches import ATTRIBUTE_TEXTS, NAMES, NONE
from playground.hard_shapes.text_samples import SHORT_KINDS
from playground.hard_shapes.text_samples import TURNS as HARD_TURNS
from playground.shapes.clip_losses import COVERED, FREE
from playground.shapes.clip_model import encode_picture, encode_texts, normalize
from playground.shapes.measure import write_numbers
from playground.shapes.questions import TURNS, Question, ask, ask_description, ask_several
from playground.shapes.world import COLORS, HELD_OUT, SHAPES, Scene, stream

Asker = Callable[[Any, np.random.Generator], list[Question]]
Numbers = dict[str, list[float]]
CLIP = Path(__file__).parent / "checkpoints" / "clip-shapes"


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures to ask about.

    Attributes:
        seeds: Held-out ones.
        scene: Makes the scene of a seed.
        askers: By name, what is asked about a scene; nothing where it leaves no such question.
        attributes: By attribute of a thing, a text for each of its values.
    """

    seeds: Sequence[int]
    scene: Callable[[int], Any]
    askers: Mapping[str, Asker]
    attributes: Mapping[str, Mapping[str, str]]


def _ask_kind(kind: str, scene: hard_scene.Scene, rng: np.random.Generator) -> list[Question]:
    question = hard_questions.ask(scene, rng, kind)
    return [question] if question.kind == kind else []


EASY = Pictures(
    seeds=HELD_OUT,
    scene=Scene.from_seed,
    askers={
        "color": lambda scene, rng: [ask(scene, rng, "color")],
        "shape": lambda scene, rng: [ask(scene, rng, "shape")],
        "presence": lambda scene, rng: [ask(scene, rng, "presence")],
        "description": lambda scene, rng: [ask_description(scene, rng)],
        "ten questions, averaged": lambda scene, rng: ask_several(scene, rng, TURNS),
    },
    attributes={
        "color": {color: f"something {color}" for color in COLORS},
        "shape": {shape: f"a {shape}" for shape in SHAPES},
    },
)
HARD = Pictures(
    seeds=hard_scene.HELD_OUT,
    scene=hard_scene.Scene.from_seed,
    askers={
        **{kind: partial(_ask_kind, kind) for kind in hard_questions.KINDS},
        "eight questions, averaged": lambda scene, rng: hard_questions.ask_several(
            scene, rng, HARD_TURNS, SHORT_KINDS
        ),
    },
    attributes={
        name: {value: ATTRIBUTE_TEXTS[name][0].format(value) for value in values}
        for name, values in NAMES.items()
    },
)
PICTURES = {"shapes": EASY, "hard-shapes": HARD}


@torch.inference_mode()
def measure_clip(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: Pictures, count: int
) -> dict[str, dict[str, float]]:
    """Measure on held-out pictures.

    Args:
        model: The CLIP, in float32.
        tokenizer: Its tokenizer.
        pictures: What is asked about.
        count: Pictures to look at.

    Returns:
        Per kind of text the share of named things' patches that stay (``named kept``), of other patches that
        stay (``others kept``), of things with less than three patches left (``things lost``), and of all
        patches (``kept``); under ``patches`` how often a thing's patch is nearest to the text of its color,
        shape and so on.
    """
    results: dict[str, Numbers] = {name: {} for name in [*pictures.askers, "patches"]}
    encoded = {
        name: encode_texts(model, tokenizer, list(texts.values()))
        for name, texts in pictures.attributes.items()
    }
    for seed in pictures.seeds[:count]:
        scene, rng = pictures.scene(seed), stream(seed, "words")
        coverage = torch.from_numpy(scene.coverage()).flatten(1)  # (things, N)
        every = torch.arange(coverage.shape[1]).unsqueeze(0)
        pixels = normalize(np.asarray(scene.render())[None])
        joint = encode_picture(model, pixels, every)[0][0]
        for name, asker in pictures.askers.items():
            questions = asker(scene, rng)
            if not questions:
                continue
            text = encode_texts(model, tokenizer, [question.text for question in questions]).mean(0)
            kept = keep_outliers(patch_relevance((joint @ text)[None]))[0]
            named = sorted({index for question in questions for index in question.named})
            _count_kept(results[name], kept, coverage, named)
        for attribute, texts in encoded.items():
            names = [*pictures.attributes[attribute]]
            values = [getattr(thing, attribute) for thing in scene.things]
            numbers = torch.tensor([names.index(value) if value else NONE for value in values])
            right = _nearest_is_right(joint @ texts.T, numbers, coverage)
            results["patches"].setdefault(attribute, []).extend(right)
    return {
        name: {key: float(np.mean(row)) for key, row in numbers.items()} for name, numbers in results.items()
    }


def _nearest_is_right(products: Tensor, numbers: Tensor, coverage: Tensor) -> list[float]:
    """Return the share of things' patches whose nearest text is that of their thing; [] without such things.

    Args:
        products: Of patches and texts, (N, texts).
        numbers: Of the text of each thing, `NONE` where it has none, (things,).
        coverage: What patches show of things, (things, N).
    """
    truth = numbers[coverage.argmax(0)]
    inside = (coverage.amax(0) > COVERED) & (truth != NONE)
    right = products.argmin(-1)[inside] == truth[inside]
    return [right.float().mean().item()] if len(right) else []


def _count_kept(numbers: Numbers, kept: Tensor, coverage: Tensor, named: list[int]) -> None:
    """Add one picture's shares of kept patches; ``kept`` is (N,), ``coverage`` (things, N)."""
    numbers.setdefault("kept", []).append(kept.float().mean().item())
    share = coverage[named].sum(0)
    numbers.setdefault("others kept", []).append(kept[share < FREE].float().mean().item())
    for index in named:
        own = kept[coverage[index] > COVERED]
        if len(own):
            numbers.setdefault("named kept", []).append(own.float().mean().item())
            numbers.setdefault("things lost", []).append(float(own.sum() < min(3, len(own))))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Measure a CLIP folder and print a table."""
    parser = CommandParser(
        prog="python -m playground.shapes.measure_clip",
        description="Which patches a small CLIP keeps for held-out questions.",
    )
    parser.add_argument("--clip", help="folder; default: the shipped one for shapes")
    parser.add_argument("--on", choices=PICTURES, default="shapes", help="which pictures (default: shapes)")
    parser.add_argument("--pictures", type=positive, default=300, help="held-out pictures")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args(argv)
    clip = resolve_folder(arguments.clip or str(CLIP))
    model = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    results = measure_clip(model, tokenizer, PICTURES[arguments.on], arguments.pictures)
    for name, numbers in results.items():
        print(f"{name:26s}", "  ".join(f"{key} {value:.1%}" for key, value in numbers.items()))
    write_numbers(results, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
