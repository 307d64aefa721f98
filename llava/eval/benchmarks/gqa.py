"""GQA (arXiv:1902.09506): compositional questions about photographs, one right answer each."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from llava.eval.benchmark import Benchmark, Mark, Question, Response
from llava.eval.files import JsonObject, first_file, read_json, read_jsonl, require_keys, write_json

SPLITS = ("testdev_balanced",)
# Where GQA's archives of questions put them.
QUESTION_FILES = tuple(
    f"data/{folder}{{split}}_questions.json" for folder in ("", "questions1.2/", "questions/")
)


def load(folder: Path, split: str) -> list[Question]:
    """Read LLaVA's questions, and the answers of the official file.

    Raises:
        UserError: If a file is missing or malformed.
    """
    source = first_file(folder, [name.format(split=split) for name in QUESTION_FILES])
    official = require_keys(read_json(source), (), str(source))
    questions = []
    path = folder / f"llava_gqa_{split}.jsonl"
    for line in read_jsonl(path, "question_id", "image", "text"):
        name, keys = f"question {line['question_id']} of {source}", ("answer", "isBalanced", "types")
        truth = require_keys(official.get(str(line["question_id"])), keys, name)
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=folder / "data" / "images" / line["image"],
                unit=line["image"],
                group="open" if truth["types"].get("structural") == "query" else "binary",
                # Only balanced questions count; the others are asked because the file has them.
                target=truth["answer"] if truth["isBalanced"] else None,
            )
        )
    return questions


def predict(text: str) -> str:
    """Return an answer as GQA's scorer compares it."""
    return text.rstrip(".").lower()


def mark(response: Response) -> Mark:
    """Compare as a whole."""
    question = response.question
    is_right = response.error is None and predict(response.text) == question.target
    return Mark(question.unit, float(is_right), question.group)


def export(responses: Sequence[Response], folder: Path, split: str, _run_id: str) -> Path:
    """Write what GQA's ``eval.py`` reads."""
    answers = [(response.question.id, response.text) for response in responses]
    return write_json(folder / "data" / f"{split}_predictions.json", predictions(answers))


def predictions(answers: Iterable[tuple[str | int, str]]) -> list[JsonObject]:
    """Return the document that GQA's scorer reads, of ids and answers."""
    return [{"questionId": str(key), "prediction": predict(text)} for key, text in answers]


GQA = Benchmark(
    name="gqa",
    title="GQA (Acc)",
    folder="gqa",
    needs=("llava_gqa_{split}.jsonl", "|".join(QUESTION_FILES), "data/images"),
    load=load,
    splits=SPLITS,
    answers="answers/llava_gqa_{split}/{id}/merge.jsonl",
    mark=mark,
    export=export,
)
