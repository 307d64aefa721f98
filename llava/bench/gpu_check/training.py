"""A training step with LoRA, activations computed again for the gradients, with and without a reduction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch

from llava.bench.gpu_check.parts import Row, require_bfloat16, require_package
from llava.bench.gpu_check.sizes import Size
from llava.bench.training import Trainee, measure

REDUCTIONS = ("none", "TRIM:0.21")


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Measure steps, the reductions taking turns.

    Raises:
        SkippedError: If peft is missing.
    """
    require_package("peft")
    trainee = Trainee(
        size.first_language_model,
        size.clip,
        rank=size.rank,
        device=device,
        dtype=require_bfloat16(device),
        checkpointing=True,
    )
    steps = measure(trainee.step, REDUCTIONS, size.text_tokens, size.repeats)
    for reduction, step in steps.items():
        positions = step.visual_tokens + size.text_tokens
        yield {
            "reduction": reduction,
            "rank": size.rank,
            "text_tokens": size.text_tokens,
            **asdict(step),
            "step_ms": step.milliseconds,
            "tokens_per_s": 1000 * positions / step.milliseconds,
            "ratio": step.milliseconds / steps[REDUCTIONS[0]].milliseconds,
        }
