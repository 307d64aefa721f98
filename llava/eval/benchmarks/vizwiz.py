"""VizWiz (arXiv:1802.08218): questions of blind people about their photographs; some have no answer."""

from collections.abc import Sequence
from pathlib import Path

from llava.constants import SHORT_ANSWER
from llava.eval.benchmark import Benchmark, Question, Response
from llava.eval.benchmarks.vqa import mark, normal_answer, peoples_answers
from llava.eval.files import JsonObject, read_jsonl, read_objects, write_json

SPLITS = ("test", "val")
UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def load(folder: Path, split: str) -> list[Question]:
    """Read the questions of a split, and people's answers where they are public.

    Raises:
        UserError: If a file is missing or malformed.
    """
    official = {item["image"]: item for item in _official(folder, split)}
    return [
        Question(
            id=line["question_id"],
            text=line["text"],
            image=folder / split / line["image"],
            unit=line["image"],
            group=official.get(line["image"], {}).get("answer_type") or "",
            target=peoples_answers(official.get(line["image"], {}), f"{split}.json, {line['image']}"),
        )
        for line in _lines(folder, split)
    ]


def export(responses: Sequence[Response], folder: Path, split: str, run_id: str) -> Path:
    """Write what the server takes.

    Raises:
        UserError: If it cannot be written.
    """
    answers = [(Path(str(response.question.image)).name, response.text) for response in responses]
    path = folder / "answers_upload" / (run_id + (f"-{split}" if split != SPLITS[0] else "") + ".json")
    return write_json(path, submission(answers))


def submission(answers: Sequence[tuple[str, str]]) -> list[JsonObject]:
    """Return the document that the server takes, of the questions' images and the answers."""
    return [{"image": image, "answer": normal_answer(text)} for image, text in answers]


def _official(folder: Path, split: str) -> list[JsonObject]:
    path = folder / f"{split}.json"
    if not path.exists():
        return []
    return read_objects(path, "image", "question", "answer_type?")


def _lines(folder: Path, split: str) -> list[JsonObject]:
    """Read LLaVA's file of questions, or the official one, whose questions lack the instruction."""
    path = folder / f"llava_{split}.jsonl"
    if path.exists() or not (official := _official(folder, split)):
        return read_jsonl(path, "question_id", "image", "text")
    return [
        {
            "question_id": item["image"],
            "image": item["image"],
            "text": "\n".join([item["question"], UNANSWERABLE, SHORT_ANSWER]),
        }
        for item in official
    ]


VIZWIZ = Benchmark(
    name="vizwiz",
    title="VizWiz (Acc)",
    folder="vizwiz",
    needs=("llava_{split}.jsonl|{split}.json", "{split}"),
    load=load,
    splits=SPLITS,
    mark=mark,
    export=export,
)
