"""An answer stage by stage: what the `Assistant` runs, prompt encoder and engine, each stage timed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean, median

import torch
from PIL import Image
from torch import Tensor

from llava.assistant import IMAGES_AT_ONCE, Assistant
from llava.bench import stage_work
from llava.bench.floors import Work
from llava.engine.base import Generation
from llava.engine.recorded_steps import recorder_for
from llava.engine.stopwatch import Stopwatch
from llava.engine.transformers_engine import TransformersEngine
from llava.messages import Request
from llava.mm_utils import tokenizer_image_token
from llava.model.multimodal_encoder.reducers.base import Method
from llava.model.multimodal_encoder.reducers.registry import signals_of
from llava.model.multimodal_encoder.token_reduction import NoReduction, Reducer

FIRST_TOKEN = ("preprocessing", "vision", "text", "selection", "projector", "splice", "prefill")
"""The stages before an answer's first token, in their order."""


@dataclass(frozen=True, slots=True)
class Preprocessed:
    """Pictures that are ready for the vision encoder.

    Attributes:
        pixels: Of each, its crops (C, 3, height, width).
        milliseconds: That all of them took.
    """

    pixels: Sequence[Tensor]
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """One batch of answers.

    Attributes:
        laps: Milliseconds of each stage before the first token.
        decode: Milliseconds of every later step.
        crops: That the vision encoder saw.
        counts: Visual tokens of each image.
        lengths: Positions of each prompt.
        questions: CLIP tokens of each distinct question; none where no question was read.
        cache_bytes: Of keys and values after the prefill.
    """

    laps: dict[str, float]
    decode: list[float]
    crops: int
    counts: list[int]
    lengths: list[int]
    questions: list[int]
    cache_bytes: int

    @property
    def visual_tokens(self) -> float:
        """Of an image, on average."""
        return mean(self.counts)

    @property
    def first_token(self) -> float:
        """Milliseconds until every answer has its first token."""
        return sum(self.laps.values())

    @property
    def decode_step(self) -> float:
        """Median milliseconds of a step, which gives every answer one token."""
        return median(self.decode)

    @property
    def whole_answer(self) -> float:
        """Milliseconds until every answer is whole."""
        return self.first_token + sum(self.decode)


class StageBench:
    """A model that answers about pictures, stage by stage.

    Args:
        assistant: The model; its language model is run by an engine of this bench, without its limits.
        pictures: Of the largest batch, in RGB.
        new_tokens: Of every answer, whatever the model says.
        question: Asked about every picture; by default each is asked a new one, which CLIP has to read.
    """

    def __init__(
        self,
        assistant: Assistant,
        pictures: Sequence[Image.Image],
        new_tokens: int,
        question: str | None = None,
    ) -> None:
        self.assistant = assistant
        self.model = assistant.whole_model
        self.encoder = assistant.encoder
        self.pictures, self.new_tokens, self.question = pictures, new_tokens, question
        self.device = self.encoder.device
        self.engine = TransformersEngine(
            self.model, assistant.tokenizer, max_rows=len(pictures), max_positions=sys.maxsize
        )
        self.engine.end_ids = []  # no answer is shorter than the others
        self.engine.record(recorder_for(self.model) if assistant.cuda_graphs else None)
        self._asked = 0

    def preprocess(self, batch: int) -> Preprocessed:
        """Turn the first ``batch`` pictures into pixels, as many at once as the `Assistant` does."""
        watch = Stopwatch(self.device)
        with ThreadPoolExecutor(min(batch, IMAGES_AT_ONCE)) as pool:
            pixels = list(pool.map(self.encoder.preprocess, self.pictures[:batch]))
        return Preprocessed(pixels, watch.lap())

    @torch.inference_mode()
    def answer(self, reducer: Reducer, ready: Preprocessed) -> Round:
        """Answer a question about each of the first pictures, which were preprocessed."""
        batch, encoder = len(ready.pixels), self.encoder
        texts, pictures = self._questions(batch), self.pictures[:batch]
        laps = {"preprocessing": ready.milliseconds}
        ids = [self._ids(text, picture) for text, picture in zip(texts, pictures, strict=True)]
        watch = Stopwatch(self.device)
        sizes = [picture.size for picture in pictures]
        encoded = encoder.encode(ready.pixels, sizes, signals_of([reducer]))
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
        running = self._prefill(prompts)
        laps["prefill"] = watch.lap()
        cache_bytes, decode = self.engine.cache_bytes, []
        while running:
            running -= {event.id for event in self.engine.step() if event.finished}
            decode.append(watch.lap())
        return Round(
            laps=laps,
            decode=decode,
            crops=sum(map(len, ready.pixels)),
            counts=list(map(len, projected)),
            lengths=list(map(len, prompts)),
            questions=self._read_tokens(texts) if reducer.needs_question else [],
            cache_bytes=cache_bytes,
        )

    def _prefill(self, prompts: Sequence[Tensor]) -> set[int]:
        """Run prompts (L_i, H) until each has its first token; return the ids of those that go on."""
        generation = Generation(max_new_tokens=self.new_tokens)
        waiting = {self.engine.submit(prompt, generation) for prompt in prompts}
        running = set(waiting)
        while waiting:
            events = self.engine.step()
            waiting -= {event.id for event in events}
            running -= {event.id for event in events if event.finished}
        return running

    def _questions(self, batch: int) -> list[str]:
        """Return the questions, which CLIP's text encoder has not read."""
        self.encoder.tower.clear_text_cache()
        if self.question is not None:
            return [self.question] * batch
        self._asked += batch
        return [f"What is the color of cat number {self._asked - i}?" for i in range(batch)]

    def _ids(self, text: str, picture: Image.Image) -> Tensor:
        prompt = self.assistant.render(Request.ask(text, picture))
        return torch.tensor(tokenizer_image_token(prompt, self.assistant.tokenizer))

    def _read_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of distinct texts that CLIP reads."""
        encoder = self.encoder.tower.load_text_encoder()
        limit = encoder.model.config.max_position_embeddings
        return [min(len(encoder.tokenizer(text)["input_ids"]), limit) for text in dict.fromkeys(texts)]

    def works(self, seen: Round, reducer: Reducer) -> dict[str, Work]:
        """Count the work of the stages that the device does; of ``decode`` that of a middle step."""
        tower, tokens = self.encoder.tower, sum(seen.counts)
        projector = self.model.get_model().mm_projector
        widths = tower.hidden_size + self.model.config.hidden_size
        middle = [length + len(seen.decode) / 2 for length in seen.lengths]
        works = {
            "vision": stage_work.vision_work(tower, seen.crops),
            "projector": stage_work.projector_work(projector, tokens, widths, self.model.dtype.itemsize),
            "prefill": stage_work.prefill_work(self.model, seen.lengths),
            "decode": stage_work.decode_work(self.model, middle),
        }
        if reducer.needs_question:
            works["text"] = stage_work.text_work(tower, seen.questions)
        if not isinstance(reducer, NoReduction | Method):  # what a published method does is not counted
            works["selection"] = stage_work.selection_work(tower, seen.crops, tokens, reducer.needs_question)
        return works
