"""What CUDA graphs save: the same answers with and without them, at the proportions of a real model."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

import torch

from llava.bench.gpu_check.parts import CLIP_BYTES, Row, require_bfloat16, require_memory
from llava.bench.gpu_check.sizes import Size
from llava.bench.pictures import random_pictures
from llava.bench.random_llava import language_model_bytes, random_assistant
from llava.bench.stages import StageBench
from llava.model.multimodal_encoder.reducers.registry import parse_reduction

REDUCTIONS = ("none", "TRIM:0.21")
LARGEST_BATCH = 8


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Measure the first language model without graphs, and then with them."""
    dtype, sizes = require_bfloat16(device), size.first_language_model
    require_memory(device, language_model_bytes(sizes, dtype) + CLIP_BYTES)
    assistant = random_assistant(sizes, size.clip, device=device, dtype=dtype)
    for batch in (batch for batch in size.batches if batch <= LARGEST_BATCH):
        for reduction in REDUCTIONS:
            for graphs in (False, True):
                assistant.use_cuda_graphs(graphs)
                bench = StageBench(assistant, random_pictures(batch), size.new_tokens)
                yield {
                    "batch": batch,
                    "reduction": reduction,
                    "graphs": graphs,
                    **measure(bench, reduction, size),
                }


def measure(bench: StageBench, reduction: str, size: Size) -> Row:
    """Return the medians of all stages, and what the first round took more: it records."""
    reducer, ready = parse_reduction(reduction), bench.preprocess(len(bench.pictures))
    first = bench.answer(reducer, ready)
    rounds = [bench.answer(reducer, ready) for _ in range(size.repeats)]
    answer = median(one.whole_answer for one in rounds)
    return {
        "stages_ms": {stage: median(one.laps[stage] for one in rounds) for stage in first.laps},
        "decode_ms": median(lap for one in rounds for lap in one.decode),
        "answer_ms": answer,
        "first_time_ms": first.whole_answer - answer,
    }
