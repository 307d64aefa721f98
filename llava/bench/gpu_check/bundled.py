"""The bundled model on held-out questions: accuracy, questions per second, and the answers that differ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from llava.assistant import Assistant
from llava.bench.gpu_check.parts import Row
from llava.bench.gpu_check.sizes import Size
from llava.engine.base import Generation
from llava.engine.router import Router
from llava.engine.transformers_engine import TransformersEngine
from llava.messages import Failure, Request
from playground.shapes.measure import held_out_questions, is_right

CPU_BATCH = 64
# In float16, what a GPU computes in unless told otherwise, also one at a time, which takes longest.
SETTINGS = (("float32", 64), ("float16", 64), ("float16", 1))
NEW_TOKENS = 12
WARM_UP = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about a picture, and its answer."""

    picture: Image.Image
    question: str
    answer: str


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Ask the same questions on the CPU and on the device."""
    asked = [
        Asked(scene.render(), question.text, question.answer)
        for scene, question in held_out_questions(size.questions)
    ]
    expected, row = answer_all(torch.device("cpu"), "float32", CPU_BATCH, asked)
    yield {**row, "differing": []}
    for dtype, batch in SETTINGS:
        answers, row = answer_all(device, dtype, batch, asked)
        differing = [
            {"number": number, "question": one.question, "cpu": cpu, "device": own}
            for number, (one, cpu, own) in enumerate(zip(asked, expected, answers, strict=True))
            if cpu != own
        ]
        yield {**row, "differing": differing}


def answer_all(device: torch.device, dtype: str, batch: int, asked: list[Asked]) -> tuple[list[str], Row]:
    """Answer all questions ``batch`` at a time; return the answers, and how right and how fast they were.

    Raises:
        UserError: If a question cannot be answered.
    """
    assistant = Assistant.load(device=str(device), dtype=dtype)
    assistant.router = Router(TransformersEngine(assistant.model, assistant.tokenizer, max_rows=batch))
    _answers(assistant, asked[:WARM_UP], batch)
    began = time.perf_counter()
    answers = _answers(assistant, asked, batch)
    seconds = time.perf_counter() - began
    right = sum(is_right(said, one.answer) for said, one in zip(answers, asked, strict=True))
    return answers, {
        "device": device.type,
        "dtype": dtype,
        "batch": batch,
        "reduction": str(assistant.encoder.reducer),
        "questions": len(asked),
        "right": right,
        "questions_per_s": len(asked) / seconds,
    }


def _answers(assistant: Assistant, asked: list[Asked], batch: int) -> list[str]:
    generation = Generation(max_new_tokens=NEW_TOKENS)
    requests = (Request.ask(one.question, one.picture, generation=generation) for one in asked)
    answers = []
    for result in assistant.answer_all(requests, batch_size=batch):
        if isinstance(result, Failure):
            raise result.error
        answers.append(result.text)
    return answers
