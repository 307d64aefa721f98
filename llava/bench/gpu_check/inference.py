"""Every stage of an answer at the proportions of real models, with random weights made on the device.

What runs is what the `Assistant` runs, its prompt encoder and its engine, stage by stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava.bench.gpu_check import stage_work
from llava.bench.gpu_check.floors import Rates, Work, measure_rates
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
from llava.bench.random_llava import language_model_bytes, random_assistant
from llava.engine.base import Generation
from llava.engine.stopwatch import Stopwatch
from llava.engine.transformers_engine import TransformersEngine
from llava.messages import Request
from llava.mm_utils import tokenizer_image_token
from llava.model.multimodal_encoder.token_reduction import NoReduction, Reducer, parse_reduction
from llava.model.placement import choose_attention

REDUCTIONS = ("none", "TRIM:-1", "TRIM:0.21", "TRIM:64", "Random:0.21", "Pool:64")
PICTURE = (480, 640)  # height and width of what is asked about
FIRST_TOKEN = ("preprocessing", "vision", "text", "selection", "projector", "splice", "prefill")
"""The stages before an answer's first token, in their order."""


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
    bench = StageBench(size.language_models[name], device, size, rates)
    for batch in size.batches:
        for reduction in REDUCTIONS:
            setting = {"model": name, "batch": batch, "reduction": reduction}
            yield from fitting(setting, device, setting_rows(bench, setting))
            bench.engine.clear()


def setting_rows(bench: StageBench, setting: Row) -> Iterator[Row]:
    """Measure one reduction at one batch: a single row, begun when it is asked for."""
    yield {**setting, **bench.measure(setting["reduction"], setting["batch"])}


@dataclass(frozen=True, slots=True)
class Round:
    """One batch of answers.

    Attributes:
        laps: Milliseconds of each stage before the first token.
        decode: Milliseconds of every later step.
        counts: Visual tokens of each image.
        lengths: Positions of each prompt.
        questions: CLIP tokens of each question.
        cache_bytes: Of keys and values after the prefill.
    """

    laps: dict[str, float]
    decode: list[float]
    counts: list[int]
    lengths: list[int]
    questions: list[int]
    cache_bytes: int


class StageBench:
    """A model with random weights that answers about random pictures, stage by stage.

    Args:
        sizes: Of the language model.
        device: Where.
        size: What else is measured how.
        rates: Of the device.
    """

    def __init__(self, sizes: dict[str, int], device: torch.device, size: Size, rates: Rates) -> None:
        self.assistant = random_assistant(sizes, size.clip, device=device, dtype=require_bfloat16(device))
        self.model = self.assistant.whole_model
        self.encoder = self.assistant.encoder
        self.encoder.tower.load_text_encoder()
        self.engine = TransformersEngine(self.model, self.assistant.tokenizer, max_rows=max(size.batches))
        self.device, self.size, self.rates = device, size, rates
        random = np.random.default_rng(0)
        self.pictures = [
            Image.fromarray(random.integers(0, 256, (*PICTURE, 3), dtype=np.uint8))
            for _ in range(max(size.batches))
        ]
        self.asked = 0
        self.preprocessed: dict[int, tuple[list[Tensor], float]] = {}

    def measure(self, reduction: str, batch: int) -> Row:
        """Return the medians of all stages beside their floors."""
        reducer = parse_reduction(reduction)
        self.answer(reducer, batch)  # to warm up
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        rounds = [self.answer(reducer, batch) for _ in range(self.size.repeats)]
        works = self.works(rounds[-1], reducer)
        laps = {stage: median(one.laps[stage] for one in rounds) for stage in rounds[-1].laps}
        decode = median(lap for one in rounds for lap in one.decode)
        first = sum(laps.values())
        on_device = [works[stage] for stage in FIRST_TOKEN if stage in works]
        return {
            "visual_tokens": mean(rounds[-1].counts),
            "text_tokens": mean(rounds[-1].lengths) - mean(rounds[-1].counts),
            "stages": {stage: self.rates.beside(lap, works.get(stage)) for stage, lap in laps.items()},
            "decode": self.rates.beside(decode, works["decode"]),
            "first_token": {"ms": first, "floor_ms": sum(self.rates.floor(work)[0] for work in on_device)},
            "tokens_per_s": 1000 * batch / decode,
            "cache_mib": rounds[-1].cache_bytes / 2**20,
            "peak_mib": self._peak_mib(),
        }

    @torch.inference_mode()
    def answer(self, reducer: Reducer, batch: int) -> Round:
        """Answer ``batch`` new questions, each about a picture of its own."""
        pictures, texts = self.pictures[:batch], self._questions(batch)
        encoder = self.encoder
        pixels, preprocessing_ms = self._pixels(batch)
        laps = {"preprocessing": preprocessing_ms}
        ids = [self._ids(text, picture) for text, picture in zip(texts, pictures, strict=True)]
        watch = Stopwatch(self.device)
        encoded = encoder.encode(pixels, [picture.size for picture in pictures])
        laps["vision"] = watch.lap()
        if reducer.needs_question:
            encoder.tower.encode_texts(texts)  # and remembered, so that the next stage is selection alone
            laps["text"] = watch.lap()
        reduced = encoder.reduce(encoded, texts, [reducer] * batch)
        laps["selection"] = watch.lap()
        projected = encoder.project(reduced)
        laps["projector"] = watch.lap()
        prompts = encoder.embed(ids, [[tokens] for tokens in projected])
        laps["splice"] = watch.lap()
        generation = Generation(max_new_tokens=self.size.new_tokens)
        running = {self.engine.submit(prompt, generation) for prompt in prompts}
        self.engine.step()
        laps["prefill"] = watch.lap()
        cache_bytes, decode = self.engine.cache_bytes, []
        while running:
            running -= {event.id for event in self.engine.step() if event.finished}
            decode.append(watch.lap())
        tokenizer = encoder.tower.load_text_encoder().tokenizer
        read = [min(len(tokenizer(text)["input_ids"]), 77) for text in texts]
        return Round(laps, decode, list(map(len, projected)), list(map(len, prompts)), read, cache_bytes)

    def _pixels(self, batch: int) -> tuple[list[Tensor], float]:
        """Return the pixels of ``batch`` pictures, and the milliseconds that they took once."""
        if batch not in self.preprocessed:
            watch = Stopwatch(self.device)
            pixels = [self.encoder.preprocess(picture) for picture in self.pictures[:batch]]
            self.preprocessed[batch] = pixels, watch.lap()
        return self.preprocessed[batch]

    def _questions(self, batch: int) -> list[str]:
        """Return questions that CLIP's text encoder has not read."""
        self.encoder.tower.clear_text_cache()
        self.asked += batch
        return [f"What is the color of cat number {self.asked - i}?" for i in range(batch)]

    def _ids(self, text: str, picture: Image.Image) -> Tensor:
        prompt = self.assistant.render(Request.ask(text, picture))
        return torch.tensor(tokenizer_image_token(prompt, self.assistant.tokenizer))

    def works(self, seen: Round, reducer: Reducer) -> dict[str, Work]:
        """Count the work of the stages that the device does."""
        tower, batch, tokens = self.encoder.tower, len(seen.counts), sum(seen.counts)
        projector = self.model.get_model().mm_projector
        widths = tower.hidden_size + self.model.config.hidden_size
        middle = [length + len(seen.decode) / 2 for length in seen.lengths]
        works = {
            "vision": stage_work.vision_work(tower, batch),
            "projector": stage_work.projector_work(projector, tokens, widths, self.model.dtype.itemsize),
            "prefill": stage_work.prefill_work(self.model, seen.lengths),
            "decode": stage_work.decode_work(self.model, middle),
        }
        if reducer.needs_question:
            works["text"] = stage_work.text_work(tower, seen.questions)
        if not isinstance(reducer, NoReduction):
            works["selection"] = stage_work.selection_work(tower, batch, tokens, reducer.needs_question)
        return works

    def _peak_mib(self) -> float | None:
        """Return the most memory that the device held; None where it does not count."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_allocated(self.device) / 2**20
