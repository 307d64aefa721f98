"""What makes one benchmark different from another: values, which one runner serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llava.engine.base import Generation
from llava.messages import ImageSource

Metrics = dict[str, float]
"""Percentages or points by name, the headline first."""

Messages = list[dict[str, str]]
"""A chat: each message with its ``role`` and ``content``."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark.

    Attributes:
        id: LLaVA's ``question_id``; several questions may share one (TextVQA's is that of the image).
        text: What the user says to the model, instructions included, without ``<image>``.
        image: What it is about, read when it is asked; None for a question about no image. Questions about
            one image share the same value, so that it is encoded once.
        prompt: LLaVA's ``prompt`` in the answer record, where that is not the text.
        clip_text: What CLIP's text encoder reads, where that is not the text.
        unit: Questions of one unit are not independent of each other; by default those of one image.
        group: A part of the benchmark that is scored by itself, such as a category.
        target: What the scorer compares with, of the benchmark's own kind; None where it is not public.
        extra: Further keys of LLaVA's answer record.
        about: Tells which patches of the image show what is asked about, bool (rows, columns), when called
            with these two; None where that is not known.
    """

    id: str | int
    text: str
    image: ImageSource | None = None
    prompt: str | None = None
    clip_text: str | None = None
    unit: str = ""
    group: str = ""
    target: Any = None
    extra: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    about: Callable[[int, int], NDArray[np.bool_]] | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """What a model said to a question.

    Attributes:
        question: What was asked.
        text: The answer; empty if there is none.
        error: Why there is none. Such a response counts as a wrong one.
    """

    question: Question
    text: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """What one response was worth.

    Attributes:
        unit: The question's, see there.
        points: 0 (wrong) to 1 (right).
        group: The question's.
        expected: The right answer, where a metric tells answers apart by it.
    """

    unit: str
    points: float
    group: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """How a judge, itself a language model, scores a response.

    Attributes:
        messages: The chat that the judge is asked to continue.
        points: Reads its reply: the points of a `Mark`, or None if it is not one.
        record: LLaVA's record of a review, of the response and the judge's reply.
        reviews: Where the records go, below the benchmark's folder; ``{id}`` is the run's, and
            ``{judge}`` the judge's name: what one judge says is not to be mixed up with another's.
        temperatures: Of the first request and of each further one, made while replies cannot be read.
        max_tokens: Of a reply.
        reference_points: Where a reference answer is scored beside the response, reads its points; they
            become the mark's ``expected``.
    """

    messages: Callable[[Response], Messages]
    points: Callable[[str], float | None]
    record: Callable[[Response, str], dict[str, Any]]
    reviews: str
    temperatures: tuple[float, ...]
    max_tokens: int
    reference_points: Callable[[str], float | None] | None = None


def accuracy(marks: Sequence[Mark]) -> Metrics:
    """Mean points of all marks and, if there are several, of every group, in percent."""
    groups: dict[str, list[float]] = {}
    for mark in marks:
        groups.setdefault(mark.group, []).append(mark.points)
    by_group = {name: percent(points) for name, points in groups.items()} if len(groups) > 1 else {}
    return {"accuracy": percent([mark.points for mark in marks])} | by_group


def percent(points: Sequence[float]) -> float:
    """Return the mean in percent; 0 of none."""
    return 100 * sum(points) / len(points) if points else 0.0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark as the runner needs it.

    Attributes:
        name: On command lines, such as ``pope``.
        title: Of its line in LLaVA's results file, such as ``POPE (Avg. F1)``.
        folder: Below the folder of all benchmarks, usually ``playground/data/eval``.
        needs: Files and folders below the benchmark's own; ``{split}`` stands for the split, ``{images}`` for
            the folder of its images, and of several joined by ``|`` one must be there.
        load: Reads the questions of a split from the benchmark's folder.
        splits: The accepted ones, the default first; empty if there is only one.
        images: Returns the folder of a split's images.
        answers: Place of the answers file below the benchmark's folder; ``{split}`` and ``{id}`` as above.
        mark: Scores a response; None if a judge does, or nobody but a server.
        metrics: Sums up marks.
        best: The headline of a run without mistakes.
        judge: For benchmarks that a judge scores.
        export: Writes what a server or an official scorer expects, and returns the file: from the responses,
            the benchmark's folder, split and the run's id.
        generation: How answers are written.
        template: Name of the conversation template.
    """

    name: str
    title: str
    folder: str
    needs: tuple[str, ...]
    load: Callable[[Path, str], Sequence[Question]]
    splits: tuple[str, ...] = ()
    images: Callable[[str], str] = lambda split: split
    answers: str = "answers/{id}.jsonl"
    mark: Callable[[Response], Mark] | None = None
    metrics: Callable[[Sequence[Mark]], Metrics] = accuracy
    best: float = 100.0
    judge: JudgeTask | None = None
    export: Callable[[Sequence[Response], Path, str, str], Path] | None = None
    generation: Generation = field(default_factory=lambda: Generation(max_new_tokens=128))
    template: str = "vicuna_v1"

    def headline(self, marks: Sequence[Mark]) -> float:
        """Return the metric that comes first."""
        return next(iter(self.metrics(marks).values()))

    def is_default(self, split: str) -> bool:
        """Tell whether a split is the one that is meant where none is named."""
        return split in ("", *self.splits[:1])
