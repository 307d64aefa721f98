"""One benchmark from question to score: load, ask, export, mark, and write down what came of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from typing import Any

from llava.assistant import Assistant
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, Mark, Question, Response
from llava.eval.data_check import choose_split, is_miniature, require_data
from llava.eval.files import JsonObject, move_aside, write_json, write_score
from llava.eval.intervals import estimate
from llava.eval.judge import Judge
from llava.eval.processes import Processes
from llava.eval.provenance import versions
from llava.eval.report import read_result
from llava.eval.reviews import Reviews, review
from llava.eval.runner import Asked, Plan, ask_questions
from llava.options import name_of_model

logger = logging.getLogger(__name__)

FAILURES_SHOWN = 5
HISTOGRAM_BINS = 16
BUNDLED = "the bundled shapes model"
NEEDS_JUDGE = "needs a judge"
STAGES = ("vision_ms", "reduction_ms", "prefill_ms", "decode_ms")


@dataclass(frozen=True, slots=True)
class Choices:
    """What a command line decides about a run.

    Attributes:
        data: Folder of all benchmarks.
        run_id: Names answers and results.
        model_path: As the user named it; the bundled model if missing.
        results_file: LLaVA's text file of results; the JSON documents lie in a folder beside it.
        split: Of the benchmark; its default if missing.
        template: Name of a conversation template instead of the benchmark's.
        generation: Attributes of `Generation` instead of the benchmark's.
        batch_size: Questions answered together; chosen by the free memory if missing.
        limit: Ask only as many questions, the first ones.
        judge: Scores what only a judge can.
    """

    data: Path
    run_id: str
    model_path: str | None
    results_file: Path
    split: str | None = None
    template: str | None = None
    generation: dict[str, Any] | None = None
    batch_size: int | None = None
    limit: int | None = None
    judge: Judge | None = None

    def result_path(self, benchmark: Benchmark, split: str) -> Path:
        """Return where the JSON document of a run goes."""
        name = benchmark.name if benchmark.is_default(split) else f"{benchmark.name}-{split}"
        if self.limit is not None:  # it is not to hide that of a whole run
            name += f"-first-{self.limit}"
        file = self.results_file.name
        # A name such as llava-v1.5-7b has a dot and no suffix.
        folder = file.removesuffix(".txt") if file.endswith(".txt") else f"{file}-json"
        return self.results_file.with_name(folder) / f"{name}.json"

    def plan(self, benchmark: Benchmark, folder: Path, split: str) -> Plan:
        """Return how the questions of a benchmark are asked."""
        return Plan(
            label=benchmark.name,
            answers_file=folder / benchmark.answers.format(id=self.run_id, split=split),
            model_id=name_of_model(self.model_path),
            template=self.template or benchmark.template,
            generation=replace(benchmark.generation, **(self.generation or {})),
            batch_size=self.batch_size,
            limit=self.limit,
            option="--id",
        )


def evaluate(
    benchmark: Benchmark, assistant: Assistant, choices: Choices, processes: Processes
) -> JsonObject | None:
    """Run a benchmark and write its answers, its export and its result.

    Args:
        benchmark: What to run.
        assistant: Answers the questions.
        choices: Where and how.
        processes: Those that share the questions; the first one scores.

    Returns:
        The result, on the first process only.

    Raises:
        UserError: If its data or a setting does not serve, or a file cannot be written.
    """
    with processes.together():
        split = choose_split(benchmark, choices.split, choices.data)
        folder = require_data(benchmark, choices.data, split)
        questions = benchmark.load(folder, split)
        if not questions:
            raise UserError(f"{benchmark.name} has no questions in {folder}")
    limit = cut_of(questions, choices.limit)
    if is_whole := limit is None:
        choices = replace(choices, limit=None)
    plan = replace(choices.plan(benchmark, folder, split), limit=limit)
    asked = ask_questions(questions, assistant, plan, processes)
    if not processes.is_first:
        return None
    settings, path = (
        {"model": choices.model_path or BUNDLED, **asked.settings},
        choices.result_path(benchmark, split),
    )
    export = _export(benchmark, asked.responses, folder, split, choices.run_id) if is_whole else None
    if benchmark.judge and choices.judge is None and (judged := _judged_before(path, settings)):
        logger.warning("%s: kept what %s said of these answers", benchmark.name, judged["judge"]["judge"])
        judged["export"] = export
        write_json(path, judged)  # its date of change says that it is of this run too
        return judged
    reviews = _judge(benchmark, asked.responses, folder, choices)
    marks = list(reviews.marks) if isinstance(reviews, Reviews) else marks_of(benchmark, asked.responses)
    counts = describe_questions(asked.responses, len(questions))
    have_all_failed = counts["failures"] == counts["questions"]
    result = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "id": choices.run_id,
        "miniature": is_miniature(choices.data),
        "split": split,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **counts,
        **describe_scores(benchmark, [] if have_all_failed else marks),
        "judge": _describe_judge(reviews),
        "cost": describe_cost(asked),
        "settings": settings,
        "run": _describe_run(assistant, plan, processes),
        "versions": versions(),
        "config": assistant.model.config.to_dict(),
        "answers_file": str(plan.answers_file),
        "export": export,
        "marks": [[mark.unit, mark.points, mark.group, mark.expected] for mark in marks],
    }
    _write_result(path, result)
    if result["score"] is not None and is_whole:
        write_score(choices.results_file, benchmark.title, result["score"]["value"])
    return result


def cut_of(questions: Sequence[Question], limit: int | None) -> int | None:
    """Return how many questions a limit lets through; None for all of them.

    A question that is asked in several orders of its options is asked in all of them.
    """
    if limit is None:
        return None
    while limit < len(questions) and questions[limit].extra.get("round_id"):
        limit += 1
    return limit if limit < len(questions) else None


def summarize(result: JsonObject) -> str:
    """Return a line about a result: its score with interval, failures, visual tokens, time and model."""
    score, cost = result["score"], result["cost"]
    if result["failures"] == result["questions"]:
        shown = "no score"
    elif score is not None:
        shown = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    elif isinstance(result["judge"], str):
        shown = result["judge"]
    else:
        shown = f"for submission: {result['export']}" if result["export"] else "no public answers"
    parts = [f"{result['questions']} questions"]
    if result["failures"]:
        parts.append(f"{result['failures']} failed, the first: {result['first_failures'][0]}")
    if cost:
        parts.append(
            f"{cost['visual_tokens']:.1f} visual tokens, {cost['milliseconds']['total_ms']:.0f} ms each"
        )
    parts.append(f"answered by {result['settings']['model']}")
    title = result["title"] + (", miniature" if result["miniature"] else "")
    return f"{title}: {shown}; {'; '.join(parts)}"


def describe_questions(responses: Sequence[Response], available: int) -> JsonObject:
    """Count questions and failures, and quote the first of these."""
    failed = [response for response in responses if response.error is not None]
    return {
        "questions": len(responses),
        "questions_available": available,
        "failures": len(failed),
        "first_failures": [f"{item.question.id}: {item.error}" for item in failed[:FAILURES_SHOWN]],
    }


def describe_scores(benchmark: Benchmark, marks: Sequence[Mark]) -> JsonObject:
    """Return the headline with its interval, and all metrics; None where nobody can score."""
    if not marks:
        return {"score": None, "metrics": {}}
    metrics = benchmark.metrics(marks)
    score = estimate(marks, benchmark.headline, benchmark.best)
    return {
        "score": {"name": next(iter(metrics)), "best": benchmark.best, **asdict(score)},
        "metrics": metrics,
    }


def describe_cost(asked: Asked) -> JsonObject:
    """Return visual tokens, and milliseconds per question by stage, of the questions that were answered."""
    costs = [entry.cost for entry in asked.entries if entry.cost is not None]
    shown = [cost for cost in costs if cost.patches]
    if not costs:
        return {}
    means = {stage: fmean(getattr(cost, stage) for cost in costs) for stage in STAGES}
    return {
        "milliseconds": means | {"total_ms": sum(means.values())},
        "new_tokens": fmean(cost.new_tokens for cost in costs),
        "patches": fmean(cost.patches for cost in shown) if shown else 0,
        "visual_tokens": fmean(cost.visual_tokens for cost in shown) if shown else 0,
        "visual_tokens_histogram": histogram([cost.visual_tokens for cost in shown]),
    }


def histogram(counts: Sequence[int]) -> list[JsonObject]:
    """Count numbers in at most 16 ranges of whole numbers of equal width, both ends included."""
    if not counts:
        return []
    low, high = min(counts), max(counts)
    width = max(1, -(-(high - low + 1) // HISTOGRAM_BINS))
    starts = range(low, high + 1, width)
    return [
        {
            "from": start,
            "to": start + width - 1,
            "questions": sum(start <= count < start + width for count in counts),
        }
        for start in starts
    ]


def marks_of(benchmark: Benchmark, responses: Sequence[Response]) -> list[Mark]:
    """Score responses to questions whose answers are public."""
    if benchmark.mark is None:
        return []
    return [benchmark.mark(response) for response in responses if response.question.target is not None]


def _export(
    benchmark: Benchmark, responses: Sequence[Response], folder: Path, split: str, run_id: str
) -> str | None:
    """Write what a server or an official scorer takes; a score does not wait for it."""
    if benchmark.export is None:
        return None
    try:
        return str(benchmark.export(responses, folder, split, run_id))
    except UserError as error:
        logger.warning("%s: no export: %s", benchmark.name, error)
        return None


def _judge(
    benchmark: Benchmark, responses: Sequence[Response], folder: Path, choices: Choices
) -> Reviews | str | None:
    """Let the judge score what has a reference answer; or say why it did not, where one is needed."""
    if benchmark.judge is None:
        return None
    if choices.judge is None:
        return NEEDS_JUDGE
    judged = [response for response in responses if response.question.target is not None]
    judge_name = re.sub(r"[^\w.-]+", "_", choices.judge.model)
    path = folder / benchmark.judge.reviews.format(id=choices.run_id, judge=judge_name)
    try:
        return review(choices.judge, benchmark.judge, judged, path)
    except UserError as error:  # what it said before is in the file, and the next run goes on there
        logger.error("%s: %s", benchmark.name, error)
        return f"failed: {error}"


def _judged_before(path: Path, settings: JsonObject) -> JsonObject | None:
    """Return the result of a judge about the same answers, if there is one: it took money to get."""
    result = _result_with(path, settings)
    return result if result is not None and isinstance(result["judge"], dict) else None


def _result_with(path: Path, settings: JsonObject) -> JsonObject | None:
    """Return the result in a file if it was had with these settings."""
    try:
        result = read_result(path)
    except UserError:  # not there, damaged, or not of this version
        return None
    return result if result["settings"] == json.loads(json.dumps(settings)) else None  # as it was written


def _write_result(path: Path, result: JsonObject) -> None:
    """Write a result; one of other settings, such as another model of the same name, or judge is moved aside.

    A judge that failed takes the place of no other: what that said is still true of these answers.
    """
    before = _result_with(path, result["settings"])
    judge = before and before["judge"]
    if isinstance(judge, dict) and isinstance(result["judge"], str):
        logger.warning("%s stays what %s said of these answers", path, judge["judge"])
        return
    is_other = before is None or (isinstance(judge, dict) and _judge_of(before) != _judge_of(result))
    if is_other and path.exists():
        (aside,) = move_aside(path)
        logger.warning("%s is of other settings or another judge; kept: %s", path, aside)
    write_json(path, result)


def _judge_of(result: JsonObject) -> tuple[str, str]:
    """Return by whom, and by which prompts, answers were judged."""
    return result["judge"]["judge"], result["judge"]["prompt_hash"]


def _describe_judge(reviews: Reviews | str | None) -> JsonObject | str | None:
    if not isinstance(reviews, Reviews):
        return reviews
    return {name: value for name, value in asdict(reviews).items() if name != "marks"}


def _describe_run(assistant: Assistant, plan: Plan, processes: Processes) -> JsonObject:
    return {
        "device": str(assistant.encoder.device),
        "processes": processes.count,
        "batch_size": plan.batch_size,
        "limit": plan.limit,
        "seed": plan.generation.seed,
    }
