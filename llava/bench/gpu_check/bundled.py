"""The bundled model on held-out questions: accuracy, questions per second, and the answers that differ."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from llava.assistant import Assistant
from llava.bench.flips import answers_in_batches
from llava.bench.gpu_check.parts import Row
from llava.bench.gpu_check.sizes import Size
from llava.engine.transformers_engine import TransformersEngine
from playground.shapes.measure import held_out_questions, is_right

CPU_BATCH = 64
# In float16, what a GPU computes in unless told otherwise, also one at a time, which takes longest.
SETTINGS = (("float32", 64), ("float16", 64), ("float16", 1))
NEW_TOKENS = 12
WARM_UP = 64


@dataclass(frozen=True, slots=True)
class Exam:
    """Questions about pictures, and what is right.

    Attributes:
        pairs: Pictures with their questions.
        right: The answers.
    """

    pairs: list[tuple[Image.Image, str]]
    right: list[str]


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Ask the same questions on the CPU and on the device."""
    asked = list(held_out_questions(size.questions))
    exam = Exam(
        [(scene.render(), question.text) for scene, question in asked],
        [question.answer for _, question in asked],
    )
    expected, row = sit(exam, torch.device("cpu"), "float32", CPU_BATCH)
    yield {**row, "differing": []}
    for dtype, batch in SETTINGS:
        answers, row = sit(exam, device, dtype, batch)
        differing = [
            {"number": number, "question": question, "cpu": cpu, "device": own}
            for number, ((_, question), cpu, own) in enumerate(
                zip(exam.pairs, expected, answers, strict=True)
            )
            if cpu != own
        ]
        yield {**row, "differing": differing}


def sit(exam: Exam, device: torch.device, dtype: str, batch: int) -> tuple[list[str], Row]:
    """Answer all questions ``batch`` at a time; return the answers, and how right and how fast they were.

    Raises:
        UserError: If a question cannot be answered.
    """
    assistant = Assistant.load(device=str(device), dtype=dtype)
    assert isinstance(assistant.engine, TransformersEngine)
    assistant.engine.max_rows = batch
    answers_in_batches(assistant, exam.pairs[:WARM_UP], batch, NEW_TOKENS)
    began = time.perf_counter()
    answers = answers_in_batches(assistant, exam.pairs, batch, NEW_TOKENS)
    seconds = time.perf_counter() - began
    return answers, {
        "device": device.type,
        "dtype": dtype,
        "batch": batch,
        "reduction": str(assistant.encoder.reducer),
        "questions": len(answers),
        "right": sum(map(is_right, answers, exam.right)),
        "questions_per_s": len(answers) / seconds,
    }
