"""A training step with LoRA, activations computed again for the gradients, with and without a reduction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch

from llava.bench.gpu_check.parts import CLIP_BYTES, Row, require_bfloat16, require_memory, require_package
from llava.bench.gpu_check.sizes import Size
from llava.bench.random_llava import language_model_bytes
from llava.bench.training import Trainee, measure

SLACK = 1.5  # of the frozen weights, for adapters, their gradients and what the optimizer remembers
REDUCTIONS = ("none", "TRIM:0.21")


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Measure steps, the reductions taking turns.

    Raises:
        SkippedError: If peft, bfloat16 or memory is missing.
    """
    require_package("peft")
    dtype = require_bfloat16(device)
    require_memory(device, SLACK * language_model_bytes(size.first_language_model, dtype) + CLIP_BYTES)
    trainee = Trainee(
        size.first_language_model,
        size.clip,
        rank=size.rank,
        device=device,
        dtype=dtype,
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
