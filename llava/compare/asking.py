"""The same questions with every setting of the reducer, resumable, and what came of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from llava.assistant import Assistant
from llava.compare.subjects import Subject
from llava.errors import UserError
from llava.eval.benchmark import Mark
from llava.eval.evaluate import describe_cost, marks_of
from llava.eval.processes import Processes
from llava.eval.runner import Plan, ask_questions
from llava.model.multimodal_encoder.reducers.registry import parse_reduction

NO_IMAGE = "no image"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a setting made of all questions, in their order.

    Attributes:
        setting: As ``mm_vision_token_reduce_func`` has it, or `NO_IMAGE`.
        marks: Of the questions whose answer is public; what failed is wrong.
        visual_tokens: Of the questions that were answered and have an image.
        milliseconds: Of a question, by stage and as ``total_ms``.
        about_kept: Mean share of the patches that show what is asked about that stayed, where it is known
            which do.
        failures: Questions without an answer.
        error: Why there is none at all, such as a budget that cannot be met.
    """

    setting: str
    marks: list[Mark] = field(default_factory=list)
    visual_tokens: list[int] = field(default_factory=list)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    about_kept: float | None = None
    failures: int = 0
    error: str | None = None

    @property
    def mean_tokens(self) -> float:
        """Visual tokens of an image on average; 0 where no question has one."""
        return fmean(self.visual_tokens) if self.visual_tokens else 0.0


def answers_file(folder: Path, setting: str) -> Path:
    """Return where the answers of a setting are written; a journal beside it resumes."""
    return folder / f"{setting.replace(':', '-').replace(' ', '-')}.jsonl"


def ask_with(
    setting: str, assistant: Assistant, subject: Subject, plan: Plan, processes: Processes
) -> Outcome | None:
    """Ask all questions with one setting.

    Args:
        setting: Of the reducer; `NO_IMAGE` asks without the images.
        assistant: The model.
        subject: What is asked.
        plan: How; it has the setting too.
        processes: Those that share the questions.

    Returns:
        What came of it, on the first process only.

    Raises:
        UserError: If answers cannot be written, or another run writes them.
    """
    if setting == NO_IMAGE:
        subject = subject.without_images()
    else:
        try:
            # Together, so that no process goes on alone where only one cannot read CLIP's text encoder.
            with processes.together():
                assistant.encoder.tower.prepare(parse_reduction(setting))
        except UserError as error:
            return Outcome(setting, error=str(error)) if processes.is_first else None
        # Or the first setting that reads the question would take the time of reading it for all others.
        assistant.encoder.tower.clear_text_cache()
    asked = ask_questions(subject.questions, assistant, plan, processes)
    if not processes.is_first:
        return None
    errors = [response.error for response in asked.responses if response.error is not None]
    # A budget that cannot be met fails every question about an image.
    about_images = [response for response in asked.responses if response.question.image is not None]
    if errors and all(response.error for response in about_images or asked.responses):
        return Outcome(setting, error=errors[0])
    costs = [entry.cost for entry in asked.entries if entry.cost is not None]
    kept = [entry.about_kept for entry in asked.entries if entry.about_kept is not None]
    return Outcome(
        setting=setting,
        marks=marks_of(subject.benchmark, asked.responses),
        visual_tokens=[cost.visual_tokens for cost in costs if cost.patches],
        milliseconds=describe_cost(asked)["milliseconds"],
        about_kept=fmean(kept) if kept else None,
        failures=len(errors),
    )
