"""What rounding decides otherwise: in batches instead of alone, and on this device instead of in float32."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from llava.assistant import Assistant
from llava.bench.flips import QUESTIONS, answers_in_batches, count_differing, count_flips, kept_in_batches
from llava.bench.gpu_check.agreement import DTYPES
from llava.bench.gpu_check.parts import Row
from llava.bench.gpu_check.sizes import Size
from playground.shapes.world import HELD_OUT, Scene

BATCH = 16


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Count patches, pairs and greedy answers of the bundled model that differ, per dtype."""
    images = [Scene.from_seed(seed).render() for seed in HELD_OUT[: size.pictures]]
    pairs = list(product(images, QUESTIONS))
    exact = Assistant.load(device="cpu", dtype="float32")
    expected = kept_in_batches(exact.encoder, pairs, 1)
    said = answers_in_batches(exact, pairs, 1)
    for dtype in DTYPES:
        assistant = Assistant.load(device=str(device), dtype=dtype)
        alone = kept_in_batches(assistant.encoder, pairs, 1)
        answers = answers_in_batches(assistant, pairs, 1)
        batched = kept_in_batches(assistant.encoder, pairs, BATCH)
        yield {
            "dtype": dtype,
            "patches": sum(map(len, alone)),
            "pairs": len(pairs),
            "in_batches": _differences(
                count_flips(batched, alone), answers_in_batches(assistant, pairs, BATCH), answers
            ),
            "from_cpu": _differences(count_flips(alone, expected), answers, said),
        }


def _differences(flips: tuple[int, int], answers: list[str], expected: list[str]) -> dict[str, int]:
    return {"patches": flips[0], "pairs": flips[1], "answers": count_differing(answers, expected)}
