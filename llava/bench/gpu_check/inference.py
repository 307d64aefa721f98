"""Every stage of an answer at the proportions of real models, with random weights made on the device."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, median

import torch

from llava.bench.floors import Rates, measure_rates
from llava.bench.gpu_check.parts import (
    CLIP_BYTES,
    OUT_OF_MEMORY,
    Row,
    SkippedError,
    release,
    require_bfloat16,
    require_memory,
)
from llava.bench.gpu_check.sizes import Size
from llava.bench.memory import PeakMemory
from llava.bench.pictures import random_pictures
from llava.bench.random_llava import language_model_bytes, random_assistant
from llava.bench.stages import FIRST_TOKEN, Preprocessed, StageBench
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.placement import choose_attention

REDUCTIONS = ("none", "TRIM:-1", "TRIM:0.21", "TRIM:64", "Random:0.21", "Pool:64")


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Measure models, batches and reductions; the first row has the device's rates."""
    dtype = require_bfloat16(device)
    rates = measure_rates(device, dtype, size.copy_mib, size.matrix_side)
    yield {
        "dtype": str(dtype).removeprefix("torch."),
        "attention": choose_attention(device, dtype),
        "copy_gb_per_s": rates.moved / 1e9,
        "matmul_tflop_per_s": rates.flops / 1e12,
        "new_tokens": size.new_tokens,
        "repeats": size.repeats,
    }
    for name in size.language_models:
        yield from fitting({"model": name}, device, model_rows(name, device, size, rates))


def fitting(setting: Row, device: torch.device, rows: Iterator[Row]) -> Iterator[Row]:
    """Give back rows; what does not fit into the device's memory is one row with its setting."""
    lacking = None
    try:
        yield from rows
    except SkippedError as reason:
        lacking = str(reason)
    except torch.OutOfMemoryError:
        lacking = OUT_OF_MEMORY
    release(device)
    if lacking is not None:
        yield {**setting, "skipped": lacking}


def model_rows(name: str, device: torch.device, size: Size, rates: Rates) -> Iterator[Row]:
    """Measure one model, small batches first."""
    weights = language_model_bytes(size.language_models[name], require_bfloat16(device))
    require_memory(device, weights + CLIP_BYTES)
    bench = InferenceBench(size.language_models[name], device, size, rates)
    for batch in size.batches:
        for reduction in REDUCTIONS:
            setting = {"model": name, "batch": batch, "reduction": reduction}
            yield from fitting(setting, device, setting_rows(bench, setting))
            bench.stages.engine.clear()


def setting_rows(bench: InferenceBench, setting: Row) -> Iterator[Row]:
    """Measure one reduction at one batch: a single row, begun when it is asked for."""
    yield {**setting, **bench.measure(setting["reduction"], setting["batch"])}


class InferenceBench:
    """A model with random weights that answers about random pictures, each stage beside its floor.

    Args:
        sizes: Of the language model.
        device: Where.
        size: What else is measured how.
        rates: Of the device.
    """

    def __init__(self, sizes: dict[str, int], device: torch.device, size: Size, rates: Rates) -> None:
        assistant = random_assistant(sizes, size.clip, device=device, dtype=require_bfloat16(device))
        assistant.encoder.tower.load_text_encoder()
        self.stages = StageBench(assistant, random_pictures(max(size.batches)), size.new_tokens)
        self.device, self.size, self.rates = device, size, rates
        self.preprocessed: dict[int, Preprocessed] = {}

    def measure(self, reduction: str, batch: int) -> Row:
        """Return the medians of all stages beside their floors."""
        reducer, ready = parse_reduction(reduction), self._preprocess(batch)
        self.stages.answer(reducer, ready)  # to warm up
        memory = PeakMemory(self.device)
        rounds = [self.stages.answer(reducer, ready) for _ in range(self.size.repeats)]
        last = rounds[-1]
        works = self.stages.works(last, reducer)
        laps = {stage: median(one.laps[stage] for one in rounds) for stage in last.laps}
        decode = median(lap for one in rounds for lap in one.decode)
        on_device = [works[stage] for stage in FIRST_TOKEN if stage in works]
        return {
            "visual_tokens": last.visual_tokens,
            "text_tokens": mean(last.lengths) - last.visual_tokens,
            "stages": {stage: self.rates.beside(lap, works.get(stage)) for stage, lap in laps.items()},
            "decode": self.rates.beside(decode, works["decode"]),
            "first_token": {
                "ms": sum(laps.values()),
                "floor_ms": sum(self.rates.floor(work)[0] for work in on_device),
            },
            "tokens_per_s": 1000 * batch / decode,
            "cache_mib": last.cache_bytes / 2**20,
            "peak_mib": memory.mib(),
        }

    def _preprocess(self, batch: int) -> Preprocessed:
        """Return pictures that are preprocessed once for all reductions, since that takes its time."""
        if batch not in self.preprocessed:
            self.stages.preprocess(batch)  # to warm up
            self.preprocessed[batch] = self.stages.preprocess(batch)
        return self.preprocessed[batch]
