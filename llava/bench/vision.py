"""What the vision side costs at ViT-L/14-336 proportions: ``python -m llava.bench.vision``.

Prints the parameters held and, per stage, milliseconds and share of the encoder's time, all from one run:
resident parameters, encoder, text tower, and selection (projection, scores, quartiles, gather).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

from llava.bench.random_clip import write_random_clip
from llava.engine.stopwatch import Stopwatch
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.token_reduction import ReducerInputs, patch_relevance
from llava.model.placement import parse_device, parse_dtype
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error

QUESTION = "What is the color of the cat?\nAnswer the question using a single word or phrase."


def load_random_tower(reduction: str, device: torch.device, dtype: torch.dtype) -> CLIPVisionTower:
    """Write a random ViT-L/14-336 CLIP to a temporary folder and load it as a checkpoint's tower."""
    settings = SimpleNamespace(mm_vision_select_layer=-2, mm_vision_token_reduce_func=reduction)
    with tempfile.TemporaryDirectory() as folder:
        tower = CLIPVisionTower(str(write_random_clip(Path(folder))), settings, delay_load=True)
        tower.load_model(device=device, dtype=dtype)
    return tower


@torch.no_grad()
def measure(tower: CLIPVisionTower, batch: int, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each stage for random images, after one round to warm up."""
    side = tower.config.image_size
    pixels = torch.randn(batch, 3, side, side)
    rounds = [measure_once(tower, pixels) for _ in range(repeats + 1)][1:]
    return {stage: median(laps[stage] for laps in rounds) for stage in rounds[0]}


def measure_once(tower: CLIPVisionTower, pixels: torch.Tensor) -> dict[str, float]:
    """Return the milliseconds of each stage for pixels (B, 3, height, width)."""
    tower.clear_text_cache()
    watch, laps = Stopwatch(tower.device), {}
    patches = tower.encode(pixels)
    laps["encoder"] = watch.lap()
    questions = tower.encode_texts([QUESTION] * len(pixels))
    laps["text tower"] = watch.lap()
    select(tower, patches, questions, pixels)
    laps["selection"] = watch.lap()
    return laps


def select(
    tower: CLIPVisionTower, patches: torch.Tensor, questions: torch.Tensor, pixels: torch.Tensor
) -> torch.Tensor:
    """Do what lies between encoder and projector: (B, N, D) patches and (B, E) questions to packed tokens."""
    relevance = patch_relevance(tower.score_patches(patches, questions))
    return tower.token_reduction(ReducerInputs(patches, pixels, lambda: relevance)).packed


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = CommandParser(prog="python -m llava.bench.vision", description=main.__doc__)
    parser.add_argument(
        "--token-reduction", default="TRIM:-1", help="reduction to measure (default: TRIM:-1)"
    )
    parser.add_argument("--batch", type=positive, default=1, help="images at a time (default: 1)")
    parser.add_argument(
        "--repeats", type=positive, default=5, help="measured rounds after one to warm up (default: 5)"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one of this machine)")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: by device)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options: argparse.Namespace = parser.parse_args(arguments)
    device = parse_device(options.device)
    tower = load_random_tower(options.token_reduction, device, parse_dtype(options.dtype, device))
    laps = measure(tower, options.batch, options.repeats)
    parameters = sum(parameter.numel() for parameter in tower.parameters())
    if options.json:
        print(json.dumps({"parameters": parameters, "milliseconds": laps}))
        return
    print(f"ViT-L/14-336, {options.token_reduction}, batch {options.batch}, {device}, {tower.dtype}")
    print(f"parameters held   {parameters / 1e6:8.1f} M")
    for stage, milliseconds in laps.items():
        share = milliseconds / laps["encoder"]
        print(f"{stage:<16}  {milliseconds:8.1f} ms  {share:7.2%} of the encoder")


if __name__ == "__main__":
    sys.exit(main())
