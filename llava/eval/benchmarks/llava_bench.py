"""LLaVA-Bench, in the wild (arXiv:2304.08485): open questions; a judge compares answers with GPT-4's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, JudgeTask, Mark, Messages, Metrics, Question, Response
from llava.eval.files import JsonObject, read_json, read_jsonl, require_keys

RULES = Path(__file__).parents[1] / "table" / "rule.json"
RULE_PREFIX = "llava_bench_"
BEST = 10.0
SYSTEM_MESSAGE = "You check the quality of answers, helpfully and precisely."


@dataclass(frozen=True, slots=True)
class Rule:
    """How a judge is to rate.

    Attributes:
        role: What it calls those who answered.
        prompt: What it is told to do.
    """

    role: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """With what a response is compared, and how; the target of a question.

    Attributes:
        number: Place of the question in its file, from 1.
        context: What the image shows, in words, for a judge who does not see it.
        reference: The other answer.
        rule: How to rate.
        answer_ids: Of the reference and of the response, where they are known.
    """

    number: int
    context: str
    reference: str
    rule: Rule
    answer_ids: tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Sources:
    """Files that the questions come from.

    Attributes:
        questions: ``questions.jsonl``.
        contexts: ``context.jsonl``: what the images show.
        references: ``answers_gpt4.jsonl``, or other answers to compare with.
        rules: ``rule.json``: of every category, who answered and how to rate.
    """

    questions: Path
    contexts: Path
    references: Path
    rules: Path = RULES


def load(folder: Path, _split: str) -> list[Question]:
    """Read the questions and GPT-4's answers.

    Raises:
        UserError: If a file is malformed, or a question has no context or answer.
    """
    sources = Sources(folder / "questions.jsonl", folder / "context.jsonl", folder / "answers_gpt4.jsonl")
    return load_questions(sources, folder / "images")


def load_questions(sources: Sources, image_folder: Path) -> list[Question]:
    """Read questions and what their answers are compared with.

    Raises:
        UserError: If a file is malformed, or a question has no context, reference answer or rule.
    """
    rules = read_rules(sources.rules)
    lines = read_jsonl(sources.contexts, "image", "caption")
    contexts = {line["image"]: line["caption"] for line in lines}
    references = {line["question_id"]: line for line in read_jsonl(sources.references, "question_id", "text")}
    questions = []
    lines = read_jsonl(sources.questions, "question_id", "image", "text", "category")
    for number, line in enumerate(lines, start=1):
        name = f"{sources.questions}: question {line['question_id']}"
        reference = _find(references, line["question_id"], f"{name} has no answer in {sources.references}")
        rule = RULE_PREFIX + str(line["category"])
        comparison = Comparison(
            number=number,
            context=_find(contexts, line["image"], f"{name} has no context in {sources.contexts}"),
            reference=reference["text"],
            rule=_find(rules, rule, f"{name} has no rule {rule} in {sources.rules}"),
            answer_ids=(reference.get("answer_id"), None),
        )
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=image_folder / line["image"],
                unit=line["image"],
                group=line["category"],
                target=comparison,
            )
        )
    return questions


def read_rules(path: Path) -> dict[str, Rule]:
    """Read LLaVA's ``rule.json``.

    Raises:
        UserError: If it is missing or malformed.
    """
    rules = {}
    for name, item in require_keys(read_json(path), (), str(path)).items():
        rule = require_keys(item, ("role", "prompt"), f"{path}: {name}")
        rules[name] = Rule(rule["role"], rule["prompt"])
    return rules


def messages(response: Response) -> Messages:
    """Show the judge the context, the question, both answers and the rule."""
    comparison: Comparison = response.question.target
    role = comparison.rule.role
    sections = [
        f"[Context]\n{comparison.context}",
        f"[Question]\n{response.question.text}",
        f"[{role} 1]\n{comparison.reference}",
        f"[End of {role} 1]",
        f"[{role} 2]\n{response.text}",
        f"[End of {role} 2]",
        f"[System]\n{comparison.rule.prompt}",
    ]
    return [
        {"role": "system", "content": SYSTEM_MESSAGE},
        {"role": "user", "content": "\n\n".join(sections)},
    ]


def ratings(reply: str) -> tuple[float, float] | None:
    """Read the ratings of the reference and of the response; None if a reply does not begin with them.

    Published reviews have ratings of -1 instead, which count in their mean.
    """
    try:
        reference, candidate = map(float, reply.split("\n", 1)[0].replace(",", " ").split())
    except ValueError:
        return None
    is_on_scale = 0 <= reference <= BEST and 0 <= candidate <= BEST
    return (reference, candidate) if is_on_scale else None


def points(reply: str) -> float | None:
    """Return the response's rating as points."""
    rated = ratings(reply)
    return None if rated is None else rated[1] / BEST


def reference_points(reply: str) -> float | None:
    """Return the reference's rating as points."""
    rated = ratings(reply)
    return None if rated is None else rated[0] / BEST


def record(response: Response, reply: str) -> JsonObject:
    """Return LLaVA's record of a review."""
    question, comparison = response.question, response.question.target
    return {
        "id": comparison.number,
        "question_id": question.id,
        "answer1_id": comparison.answer_ids[0],
        "answer2_id": comparison.answer_ids[1],
        "category": question.group,
        "content": reply,
        "tuple": list(ratings(reply) or ()),
    }


def metrics(marks: Sequence[Mark]) -> Metrics:
    """Return the ratings of the responses in percent of the references', of all and of every category.

    A response without an answer loses against a reference that is as good as can be.
    """
    categories = sorted({mark.group for mark in marks})
    by_category = {name: _relative([mark for mark in marks if mark.group == name]) for name in categories}
    return {"all": _relative(marks)} | by_category


def _relative(marks: Sequence[Mark]) -> float:
    reference = sum(float(mark.expected or 1) for mark in marks)
    return 100 * sum(mark.points for mark in marks) / reference if reference else 0.0


def _find(table: Mapping[Any, Any], key: Any, complaint: str) -> Any:
    if key not in table:
        raise UserError(complaint)
    return table[key]


REVIEWING = JudgeTask(
    messages=messages,
    points=points,
    reference_points=reference_points,
    record=record,
    reviews="reviews/{id}-{judge}.jsonl",
    # The published one asks once; the sampling gives a further try its chance.
    temperatures=(0.2, 0.2, 0.2),
    max_tokens=1024,
)

LLAVA_BENCH = Benchmark(
    name="llava_bench",
    title="LLaVA-Bench (GPT judge)",
    folder="llava-bench-in-the-wild",
    needs=("questions.jsonl", "context.jsonl", "answers_gpt4.jsonl", "images"),
    load=load,
    metrics=metrics,
    judge=REVIEWING,
    generation=Generation(max_new_tokens=1024),
)
