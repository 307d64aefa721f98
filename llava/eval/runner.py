"""Asks the questions of a benchmark: resumable, shared by processes, each image encoded once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava.assistant import Assistant
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.batch_size import choose_batch_size
from llava.eval.benchmark import Question, Response
from llava.eval.files import JsonObject, write_jsonl
from llava.eval.journal import Entry, Journal
from llava.eval.processes import Processes
from llava.eval.provenance import code_digest, digest_of, question_digests, settings_of
from llava.messages import Answer, Failure, Request

logger = logging.getLogger(__name__)

# The order of LLaVA's keys; a benchmark's own are those between.
KEYS = (
    "question_id",
    "round_id",
    "prompt",
    "text",
    "options",
    "option_char",
    "answer_id",
    "model_id",
    "metadata",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How questions are asked.

    Attributes:
        label: What the progress bar says.
        answers_file: LLaVA's answers file, in the order of the questions when the run has ended.
        model_id: Of its records.
        template: Name of the conversation template.
        generation: How answers are written.
        batch_size: Questions answered together; chosen by the free memory if missing.
        limit: Ask only as many, the first ones.
        option: What on the command line would name another answers file.
        reduction: Setting of the reducer instead of the one that the assistant was loaded with.
    """

    label: str
    answers_file: Path
    model_id: str
    template: str
    generation: Generation
    batch_size: int | None = None
    limit: int | None = None
    option: str = "--answers-file"
    reduction: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What came of asking.

    Attributes:
        responses: Of the questions that were asked, in their order; on the first process only.
        entries: Likewise; they have the costs.
        settings: What the answers depend on.
    """

    responses: list[Response]
    entries: list[Entry]
    settings: dict[str, Any]


def ask_questions(
    questions: Sequence[Question], assistant: Assistant, plan: Plan, processes: Processes
) -> Asked:
    """Answer questions that have no answer yet, and write the answers file.

    Args:
        questions: All of the benchmark's.
        assistant: Answers them.
        plan: How.
        processes: Those that share the questions.

    Raises:
        UserError: If a file cannot be written, or another run writes to it.
    """
    chosen = range(len(questions) if plan.limit is None else min(plan.limit, len(questions)))
    journal = Journal.beside(plan.answers_file)
    with ExitStack() as held:
        with processes.together():
            settings, digests = _settings(assistant, plan), question_digests(questions)
            if processes.is_first:
                held.enter_context(journal.lock(plan.option))
                journal.open(settings, plan.answers_file)
        with processes.together():
            share = share_of(questions, chosen, processes)
            _answer_share(questions, digests, share, assistant, plan, processes)
        settings |= {"questions": digest_of(digests)}
        if not processes.is_first:
            return Asked([], [], settings)
        entries = journal.read(digests)
        responses = {i: Response(questions[i], entry.text, entry.error) for i, entry in entries.items()}
        write_jsonl(
            plan.answers_file, (answer_record(responses[i], plan.model_id) for i in sorted(responses))
        )
        if absent := [index for index in chosen if index not in entries]:
            raise UserError(
                f"{plan.answers_file} lacks {len(absent)} answers that other processes have given: do all "
                "processes write to the same file system? Run again to go on"
            )
        return Asked([responses[i] for i in chosen], [entries[i] for i in chosen], settings)


def share_of(questions: Sequence[Question], chosen: Sequence[int], processes: Processes) -> list[int]:
    """Return the indices of the questions that this process asks; those about one image stay together.

    Args:
        questions: All of them.
        chosen: Indices of those that are asked.
        processes: Those that share them.
    """
    by_image: dict[Any, list[int]] = {}
    for index in chosen:
        image = questions[index].image
        key = ("text", index) if image is None else str(image) if isinstance(image, str | Path) else id(image)
        by_image.setdefault(key, []).append(index)
    return [index for group in list(by_image.values())[processes.rank :: processes.count] for index in group]


def request_for(question: Question, plan: Plan) -> Request:
    """Return what the assistant is asked: LLaVA's prompt, the image in front of the text."""
    text = question.text.replace(DEFAULT_IMAGE_TOKEN, "")
    images = () if question.image is None else (question.image,)
    return Request.ask(
        text,
        *images,
        clip_text=question.clip_text,
        template=plan.template,
        generation=plan.generation,
        token_reduction=plan.reduction,
    )


def answer_record(response: Response, model_id: str) -> JsonObject:
    """Return LLaVA's record of an answer.

    The id of the answer follows from model and question, so that a run that was killed and continued writes
    the same file as one that was not. A question that failed says so in its metadata.
    """
    question = response.question
    prompt = question.text if question.prompt is None else question.prompt
    record = {
        "question_id": question.id,
        "prompt": prompt,
        "text": response.text,
        "answer_id": short_id(model_id, question.id, prompt, dict(question.extra)),
        "model_id": model_id,
        "metadata": {} if response.error is None else {"error": response.error},
        **question.extra,
    }
    return {key: record[key] for key in (*KEYS, *question.extra) if key in record}


def short_id(*parts: object) -> str:
    """Return an id of 22 letters and digits, as LLaVA's are, which is always the same for the same parts."""
    alphabet = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
    number = int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:16], "big")
    digits = []
    for _ in range(22):
        number, digit = divmod(number, len(alphabet))
        digits.append(alphabet[digit])
    return "".join(digits)


def _settings(assistant: Assistant, plan: Plan) -> dict[str, Any]:
    """Return all that decides what the answers are; two runs with the same settings share them."""
    return {
        **settings_of(assistant, plan.reduction),
        "template": plan.template,
        "generation": asdict(plan.generation),
        "code": code_digest(),
    }


def _answer_share(
    questions: Sequence[Question],
    digests: Sequence[str],
    share: Sequence[int],
    assistant: Assistant,
    plan: Plan,
    processes: Processes,
) -> None:
    """Answer what this process has not answered yet; a question that failed before is asked again."""
    journal = Journal.beside(plan.answers_file)
    entries = journal.read(digests)
    pending = [index for index in share if index not in entries or entries[index].error is not None]
    if not pending:
        return
    batch_size = plan.batch_size or choose_batch_size(assistant, plan.generation, processes)
    requests = (request_for(questions[index], plan) for index in pending)
    bar = tqdm(
        desc=plan.label,
        total=len(share),
        initial=len(share) - len(pending),
        unit="question",
        disable=not processes.is_first,
    )
    with journal.writer(processes.rank) as writer, bar:
        for index, result in zip(pending, assistant.answer_all(requests, batch_size), strict=True):
            writer.append(_entry(index, digests[index], questions[index], result))
            bar.update()


def _entry(index: int, digest: str, question: Question, result: Answer | Failure) -> Entry:
    if isinstance(result, Failure):
        return Entry(index, digest, "", error=str(result.error))
    about_kept = None
    if question.about is not None and len(result.kept) == 1:
        kept = result.kept[0].cpu().numpy()
        # Nothing is known of methods that average all patches.
        about_kept = float(kept[question.about(*kept.shape)].mean()) if kept.any() else None
    return Entry(index, digest, result.text, cost=result.cost, about_kept=about_kept)
