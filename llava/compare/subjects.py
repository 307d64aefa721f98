"""What settings are compared on: held-out questions about shapes, or benchmarks that are in place."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from llava.bench.machine import ROOT
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, Question
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.data_check import choose_split, is_miniature, require_data
from llava.eval.evaluate import cut_of

SHAPES, HARD_SHAPES = "shapes", "hard-shapes"
SHAPES_QUESTIONS = 800


@dataclass(frozen=True, slots=True)
class Subject:
    """Questions with their right answers.

    Attributes:
        benchmark: How they are asked and scored.
        questions: All of them.
        limit: How many are asked, the first ones; None for all.
        miniature: Whether they are about shapes in place of the benchmark's own.
    """

    benchmark: Benchmark
    questions: Sequence[Question]
    limit: int | None
    miniature: bool = False

    @property
    def name(self) -> str:
        """Of the benchmark."""
        return self.benchmark.name

    def describe(self) -> str:
        """Say what is asked."""
        available = len(self.questions)
        shown = (
            f"All {available} questions"
            if self.limit is None
            else f"The first {self.limit} of {available} questions"
        )
        return f"{shown} of a miniature" if self.miniature else shown

    def without_images(self) -> Subject:
        """Return the same questions about no image, which tell what guessing is worth."""
        blind = [replace(question, image=None, about=None) for question in self.questions]
        return replace(self, questions=blind)


def accepted_subjects() -> list[str]:
    """Return what settings can be compared on: what is scored here, without a server or a judge."""
    return [SHAPES, HARD_SHAPES, *(benchmark.name for benchmark in BENCHMARKS if benchmark.mark is not None)]


def load_subjects(names: Sequence[str], data: Path, limit: int | None) -> list[Subject]:
    """Read the questions.

    Args:
        names: Of benchmarks, or ``shapes`` or ``hard-shapes``.
        data: Folder of all benchmarks.
        limit: Ask only as many of each; if missing, all of a benchmark and 800 about shapes.

    Raises:
        UserError: If one is not known or not in place, or nobody but a server knows its answers.
    """
    if unknown := [name for name in names if name not in accepted_subjects()]:
        raise UserError(
            f"settings cannot be compared on {unknown[0]!r}; accepted: {', '.join(accepted_subjects())}"
        )
    return [_load(name, data, limit) for name in dict.fromkeys(names)]


def _load(name: str, data: Path, limit: int | None) -> Subject:
    if name in (SHAPES, HARD_SHAPES):
        benchmark, split, folder = _from_playground(name), "", data
        limit = SHAPES_QUESTIONS if limit is None and name == SHAPES else limit
    else:
        benchmark = next(item for item in BENCHMARKS if item.name == name)
        split = choose_split(benchmark, None, data)
        folder = require_data(benchmark, data, split)
    questions = benchmark.load(folder, split)
    limit = cut_of(questions, limit)
    if not any(question.target is not None for question in questions[:limit]):
        raise UserError(
            f"the answers of {name}{split and f' ({split})'} are not public, so that nothing can be compared"
            if limit is None
            else f"none of the first {limit} questions of {name} has a public answer; accepted: more of them"
        )
    is_mini = name not in (SHAPES, HARD_SHAPES) and is_miniature(data)
    return Subject(benchmark, questions, limit, is_mini)


def _from_playground(name: str) -> Benchmark:
    """Return questions about shapes, which come with a clone of the repository."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # an installed command does not look there
    try:
        return import_module(f"playground.{name.replace('-', '_')}.benchmark").BENCHMARK
    except ImportError:
        raise UserError(
            f"the questions about shapes come with a clone of the repository, and {ROOT} is none"
        ) from None
