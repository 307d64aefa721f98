"""MM-Vet (arXiv:2308.02490): open questions that need several capabilities each; a judge scores answers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.benchmark import Benchmark, JudgeTask, Mark, Messages, Metrics, Question, Response, percent
from llava.eval.files import JsonObject, read_json, read_jsonl, require_keys, write_json

TRUTH_FILE = "mm-vet.json"
CAPABILITY_SEPARATOR = ","
INSTRUCTION = (
    "Every row of the table below holds a question about an image, the ground truth, an answer that was "
    "predicted, and how correct the prediction is: a number from 0.0 (wrong) to 1.0 (right), in tenths. "
    "Where <AND> stands in the ground truth, a prediction is right only if it has all of the parts that are "
    "joined, and partly correct if it has some; where <OR> stands, one of the parts is enough. "
    "Rate the prediction in the last row: reply with the number that is missing there, and nothing else."
)
HEADER = ("Question", "Ground truth", "Prediction", "Correctness")
BUS = ("Which number is on the bus, and what color is it?", "42 <AND> green")
SUM = ("How much do two loaves cost?", "7 <OR> seven <OR> $7")
NOTE = (
    "Why is this note funny?",
    "The note asks the reader to stop reading notes, which can be obeyed only by disobeying it first.",
)
EXAMPLES = (
    (*BUS, "A bus stands at the stop in the rain.", "0.0"),
    (*BUS, "Bus 42 stands at the stop.", "0.5"),
    (*BUS, "It is a blue bus with the number 42.", "0.5"),
    (*BUS, "The bus is green and has the number 42.", "1.0"),
    (*SUM, "One loaf costs 3.50, so two of them cost seven dollars.", "1.0"),
    (*SUM, "Two loaves cost 6 dollars.", "0.0"),
    (*NOTE, "It is written in a funny hand.", "0.0"),
    (*NOTE, "It is a note about notes, which is an odd thing to write down.", "0.3"),
    (*NOTE, "It tells you not to read notes, but you have to read it to know that.", "1.0"),
)


def load(folder: Path, _split: str) -> list[Question]:
    """Read the questions and, if they are there, the official answers and capabilities.

    Raises:
        UserError: If a file is malformed, or lacks a question.
    """
    path = folder / TRUTH_FILE
    official = read_json(path) if path.exists() else None
    questions = []
    for line in read_jsonl(folder / "llava-mm-vet.jsonl", "question_id", "image", "text"):
        truth = None if official is None else _find_truth(official, line["question_id"], path)
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=folder / "images" / line["image"],
                unit=line["image"],
                group=CAPABILITY_SEPARATOR.join(truth["capability"]) if truth else "",
                target=truth and truth["answer"],
            )
        )
    return questions


def _find_truth(official: Any, question_id: str | int, path: Path) -> JsonObject:
    name = official_id(question_id)
    # Not `require_keys`, which would list all names that there are.
    if not isinstance(official, dict) or name not in official:
        raise UserError(f"{path} has no question {name}; MM-Vet's own file has one for each of LLaVA's")
    return require_keys(official[name], ("answer", "capability"), f"{path}: {name}")


def official_id(question_id: str | int) -> str:
    """Return what MM-Vet calls a question."""
    return f"v1_{question_id}"


def messages(response: Response) -> Messages:
    """Show the judge a table of examples with a last row that lacks its number.

    Raises:
        UserError: If there is no official answer.
    """
    question = response.question
    if question.target is None:
        raise UserError(f"question {question.id} of MM-Vet cannot be judged without {TRUTH_FILE}")
    truth = question.target.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    rows = [HEADER, ("---",) * len(HEADER), *EXAMPLES, (question.text, truth, response.text, "")]
    table = "\n".join(" | ".join(_in_one_line(cell) for cell in row) for row in rows)
    return [{"role": "user", "content": f"{INSTRUCTION}\n\n{table}"}]


def _in_one_line(text: str) -> str:
    return " ".join(text.split())


def points(reply: str) -> float | None:
    """Read the first word of a reply as a number from 0 to 1; None if it is none."""
    try:
        score = float(reply.split(maxsplit=1)[0])
    except (IndexError, ValueError):
        return None
    return score if 0 <= score <= 1 else None


def record(response: Response, reply: str) -> JsonObject:
    """Return a review as it is kept."""
    question = response.question
    return {
        "question_id": question.id,
        "answer": response.text,
        "capability": question.group.split(CAPABILITY_SEPARATOR),
        "content": reply,
        "score": points(reply),
    }


def metrics(marks: Sequence[Mark]) -> Metrics:
    """Return mean points in percent, of all and of every capability; a question counts for each it needs."""
    capabilities: dict[str, list[float]] = {}
    for mark in marks:
        for name in mark.group.split(CAPABILITY_SEPARATOR):
            capabilities.setdefault(name, []).append(mark.points)
    total = percent([mark.points for mark in marks])
    return {"total": total} | {name: percent(capabilities[name]) for name in sorted(capabilities)}


def export(responses: Sequence[Response], folder: Path, _split: str, run_id: str) -> Path:
    """Write what MM-Vet's own scorer reads."""
    answers = [(response.question.id, response.text) for response in responses]
    return write_results(folder / "results" / f"{run_id}.json", answers)


def write_results(path: Path, answers: Iterable[tuple[str | int, str]]) -> Path:
    """Write ids and answers as MM-Vet's own scorer reads them.

    Raises:
        UserError: If the file cannot be written.
    """
    return write_json(path, {official_id(key): text for key, text in answers}, indent=2)


MMVET = Benchmark(
    name="mmvet",
    title="MM-Vet (GPT judge)",
    folder="mm-vet",
    needs=("llava-mm-vet.jsonl", "images"),
    load=load,
    metrics=metrics,
    judge=JudgeTask(
        messages=messages,
        points=points,
        record=record,
        reviews="reviews/{id}-{judge}.jsonl",
        temperatures=(0.0, 0.4, 0.8, 1.2, 1.6, 2.0),
        # The official scorer allows 3, which some tokenizers need for the digits alone.
        max_tokens=8,
    ),
    export=export,
    generation=Generation(max_new_tokens=1024),
)
