"""What the choice of patches costs by itself, and how often the host waits from pixels to a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import mean

import torch

from llava.assistant import Assistant
from llava.bench.floors import median_ms
from llava.bench.gpu_check.parts import Row, UnmetError, require_bfloat16
from llava.bench.gpu_check.sizes import Size
from llava.bench.gpu_check.synchronisations import count_synchronisations
from llava.bench.random_llava import random_assistant
from llava.mm_utils import tokenizer_image_token
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.multimodal_encoder.token_reduction import ReducerInputs, patch_relevance

BATCH = 16
REDUCTIONS = ("TRIM:-1", "TRIM:0.21", "TRIM:64")
WANTED = 1  # the host has to learn the counts, and nothing else


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Time the reducer alone, and count synchronisations.

    Raises:
        UnmetError: If the host waits more than once.
    """
    assistant = selection_assistant(device, size)
    unmet = []
    for reduction in REDUCTIONS:
        row = {"reduction": reduction, "batch": BATCH, **time_selection(assistant, reduction, size)}
        lines = count_synchronisations(device, chain(assistant, reduction))
        yield {**row, "synchronisations": lines}
        if lines is not None and len(lines) != WANTED:
            unmet.append(f"{reduction} {len(lines)}")
    if unmet:
        raise UnmetError(f"the host waits for the device not {WANTED} time, but: {', '.join(unmet)}")


def selection_assistant(device: torch.device, size: Size) -> Assistant:
    """Make a model of which nothing but the language model's depth is missing."""
    sizes = {**size.first_language_model, "num_hidden_layers": 1}
    assistant = random_assistant(sizes, size.clip, device=device, dtype=require_bfloat16(device))
    assistant.encoder.tower.load_text_encoder()
    return assistant


@torch.inference_mode()
def time_selection(assistant: Assistant, reduction: str, size: Size) -> Row:
    """Return the milliseconds of scores, and of the reducer once it has the relevance."""
    tower, reducer = assistant.encoder.tower, parse_reduction(reduction)
    shape = (BATCH, tower.num_patches, tower.hidden_size)
    patches = torch.randn(shape, device=tower.device).to(tower.dtype)
    questions = torch.randn(BATCH, tower.vision_tower.config.projection_dim, device=tower.device)
    relevance = patch_relevance(tower.score_patches(patches, questions))
    inputs = ReducerInputs(patches, torch.empty(0), lambda: relevance)
    texts = ["What is it?"] * BATCH  # remembered, so that nothing is timed but the choice
    often = {"calls": size.calls, "repeats": size.repeats}
    return {
        "patches": tower.num_patches,
        "visual_tokens": mean(reducer(inputs).counts),
        "scores_ms": median_ms(
            tower.device, lambda: patch_relevance(tower.score_patches(patches, questions)), **often
        ),
        "reducer_ms": median_ms(tower.device, lambda: reducer(inputs), **often),
        "replayed_ms": median_ms(
            tower.device, lambda: tower.reduce(patches, inputs.pixels, texts, reducer), **often
        ),
    }


def chain(assistant: Assistant, reduction: str) -> Callable[[], object]:
    """Return what leads from pixels on the host to embedded prompts, warmed up, with new questions."""
    encoder, reducer = assistant.encoder, parse_reduction(reduction)
    side = encoder.tower.config.image_size
    pixels = list(torch.randn(BATCH, 1, 3, side, side))
    ids = [torch.tensor(tokenizer_image_token("<image>\nWhat is it?", assistant.tokenizer))] * BATCH

    @torch.inference_mode()
    def work() -> object:
        encoder.tower.clear_text_cache()
        encoded = encoder.encode(pixels, [(side, side)] * BATCH)
        texts = [f"What is the color of cat number {number}?" for number in range(BATCH)]
        projected = encoder.project(encoder.reduce(encoded, texts, [reducer] * BATCH))
        return encoder.embed(ids, [[tokens] for tokens in projected])

    work()
    return work
