"""SEED-Bench (arXiv:2307.16125): questions with options about images and about frames of videos."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from llava.eval.benchmark import Benchmark, Mark, Metrics, Question, Response, percent
from llava.eval.files import ID, JsonObject, read_json, read_jsonl, require_keys, write_jsonl

SEPARATOR = ": "  # between the kind of data and the type of a question


def load(folder: Path, _split: str) -> list[Question]:
    """Read the questions and the right letters.

    Raises:
        UserError: If a file is missing or malformed, or lacks a question.
    """
    truth = read_truth(folder / "SEED-Bench.json")
    questions = []
    for line in read_jsonl(folder / "llava-seed-bench.jsonl", "question_id", "image", "text"):
        where = f"question {line['question_id']} of SEED-Bench.json"
        item = require_keys(truth.get(key_of(line["question_id"])), ("answer", "group"), where)
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=folder / line["image"],
                unit=line["image"],
                group=item["group"],
                target=item["answer"],
            )
        )
    return questions


def read_truth(path: Path) -> dict[int | str, JsonObject]:
    """Read the official file: of every question the right ``answer``, and its ``group``.

    Raises:
        UserError: If it is missing or malformed.
    """
    document = require_keys(read_json(path), ("questions", "question_type?"), str(path))
    types = document.get("question_type") or {}
    require_keys(types, tuple(types), f"{path}, 'question_type'", **dict.fromkeys(types, ID))
    names = {number: name for name, number in types.items()}
    truth = {}
    for number, item in enumerate(document["questions"]):
        keys = ("question_id", "question_type_id", "data_type", "answer")
        require_keys(item, keys, f"{path}, question {number}")
        kind = names.get(item["question_type_id"], f"type {item['question_type_id']}")
        group = f"{item['data_type']}{SEPARATOR}{kind}"
        truth[key_of(item["question_id"])] = {"answer": item["answer"], "group": group}
    return truth


def key_of(question_id: int | str) -> int | str:
    """Return an id as a number if it can be one: the two files differ in it."""
    try:
        return int(question_id)
    except ValueError:
        return question_id


def mark(response: Response) -> Mark:
    """Compare the answer as it is with the right letter, as the published scorer does."""
    question = response.question
    is_right = response.error is None and response.text == question.target
    return Mark(question.unit, float(is_right), question.group)


def metrics(marks: Sequence[Mark]) -> Metrics:
    """Return the accuracy in percent on images, on all and on videos, and of each type of question."""
    by_kind: dict[str, list[float]] = {"image": [], "video": []}
    by_type: dict[str, list[float]] = {}
    for item in marks:
        kind, _, name = item.group.partition(SEPARATOR)
        by_kind.setdefault(kind, []).append(item.points)
        by_type.setdefault(name, []).append(item.points)
    summary = {
        "image": percent(by_kind["image"]),
        "total": percent([item.points for item in marks]),
        "video": percent(by_kind["video"]),
    }
    return summary | {name: percent(points) for name, points in by_type.items()}


def export(responses: Sequence[Response], folder: Path, _split: str, run_id: str) -> Path:
    """Write what SEED-Bench's server takes."""
    answers = ((response.question.id, response.text) for response in responses)
    return write_jsonl(folder / "answers_upload" / f"{run_id}.jsonl", submission(answers))


def submission(answers: Iterable[tuple[int | str, str]]) -> list[JsonObject]:
    """Return the lines that the server takes, of ids and answers."""
    return [{"question_id": key, "prediction": text} for key, text in answers]


SEED = Benchmark(
    name="seed",
    title="SEEDBench (Image)",
    folder="seed_bench",
    # Videos may be missing: the headline is about images.
    needs=("llava-seed-bench.jsonl", "SEED-Bench.json", "SEED-Bench-image"),
    load=load,
    answers="answers/{id}/merge.jsonl",
    mark=mark,
    metrics=metrics,
    export=export,
)
