"""Ask of the toy CLIP what the reducer asks: which patches stay for a text, and are they what it names?"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from llava.model.checkpoint_files import resolve_folder
from llava.model.multimodal_encoder.token_reduction import keep_outliers, patch_relevance
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.shapes.clip_losses import COVERED, FREE
from playground.shapes.clip_model import encode_picture, encode_texts, normalize
from playground.shapes.measure import write_numbers
from playground.shapes.questions import TURNS, Question, ask, ask_description, ask_several
from playground.shapes.world import COLORS, GRID, HELD_OUT, SHAPES, Scene, stream

Asker = Callable[[Scene, np.random.Generator], list[Question]]
ASKERS: dict[str, Asker] = {
    "color": lambda scene, rng: [ask(scene, rng, "color")],
    "shape": lambda scene, rng: [ask(scene, rng, "shape")],
    "presence": lambda scene, rng: [ask(scene, rng, "presence")],
    "description": lambda scene, rng: [ask_description(scene, rng)],
    "ten questions, averaged": lambda scene, rng: ask_several(scene, rng, TURNS),
}
Numbers = dict[str, list[float]]
CLIP = Path(__file__).parent / "checkpoints" / "clip-shapes"


@torch.inference_mode()
def measure_clip(model: CLIPModel, tokenizer: CLIPTokenizer, count: int) -> dict[str, dict[str, float]]:
    """Measure on held-out pictures.

    Args:
        model: The toy CLIP, in float32.
        tokenizer: Its tokenizer.
        count: Held-out pictures to look at.

    Returns:
        Per kind of text the share of named things' patches that stay (``named kept``), of other patches that
        stay (``others kept``), of things with less than three patches left (``things lost``), and of all
        patches (``kept``); under ``patches`` how often a thing's patch is nearest to the text of its color
        and shape.
    """
    results: dict[str, Numbers] = {name: {} for name in [*ASKERS, "patches"]}
    every = torch.arange(GRID * GRID).unsqueeze(0)
    colors = encode_texts(model, tokenizer, [f"something {color}" for color in COLORS])
    shapes = encode_texts(model, tokenizer, [f"a {shape}" for shape in SHAPES])
    for seed in HELD_OUT[:count]:
        scene, rng = Scene.from_seed(seed), stream(seed, "words")
        coverage = torch.from_numpy(scene.coverage()).flatten(1)  # (things, N)
        pixels = normalize(np.asarray(scene.render())[None])
        joint = encode_picture(model, pixels, every)[0][0]
        for name, asker in ASKERS.items():
            questions = asker(scene, rng)
            text = encode_texts(model, tokenizer, [question.text for question in questions]).mean(0)
            kept = keep_outliers(patch_relevance((joint @ text)[None]))[0]
            named = sorted({index for question in questions for index in question.named})
            _count_kept(results[name], kept, coverage, named)
        for texts, attribute, names in ((colors, "color", [*COLORS]), (shapes, "shape", [*SHAPES])):
            guess = (joint @ texts.T).argmin(-1)
            truth = torch.tensor([names.index(getattr(thing, attribute)) for thing in scene.things])
            inside = coverage.amax(0) > COVERED
            right = guess[inside] == truth[coverage.argmax(0)[inside]]
            results["patches"].setdefault(attribute, []).append(right.float().mean().item())
    return {
        name: {key: float(np.mean(row)) for key, row in numbers.items()} for name, numbers in results.items()
    }


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
        description="Which patches the toy CLIP keeps for held-out questions.",
    )
    parser.add_argument("--clip", help="folder; default: the shipped one")
    parser.add_argument("--pictures", type=positive, default=300, help="held-out pictures")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    arguments = parser.parse_args(argv)
    clip = resolve_folder(arguments.clip or str(CLIP))
    model = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip)
    results = measure_clip(model, tokenizer, arguments.pictures)
    for name, numbers in results.items():
        print(f"{name:26s}", "  ".join(f"{key} {value:.1%}" for key, value in numbers.items()))
    write_numbers(results, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
