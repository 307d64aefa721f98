"""VQAv2 (arXiv:1612.00837): open questions about COCO's photographs; a server scores the test splits."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from llava.eval.benchmark import Benchmark, Question, Response
from llava.eval.benchmarks.vqa import mark, normal_answer, peoples_answers, with_instruction
from llava.eval.files import INTEGER, JsonObject, read_json, read_jsonl, require_keys, write_json

SPLITS = ("test-dev2015", "test2015", "val2014")
WHOLE_TEST = "llava_vqav2_mscoco_test2015.jsonl"


def load(folder: Path, split: str) -> list[Question]:
    """Read the questions of a split, and people's answers where they are public.

    Raises:
        UserError: If a file is missing or malformed.
    """
    path = folder / f"v2_mscoco_{split}_annotations.json"
    annotations = _annotations(path)
    questions = []
    for line in _lines(folder, split):
        annotation = annotations.get(line["question_id"], {})
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=folder / image_folder(split) / line["image"],
                unit=line["image"],
                target=peoples_answers(annotation, f"{path}, question {line['question_id']}"),
                group=annotation.get("answer_type") or "",
            )
        )
    return questions


def image_folder(split: str) -> str:
    """Return the folder of a split's images."""
    return "val2014" if split.startswith("val") else "test2015"


def export(responses: Sequence[Response], folder: Path, split: str, run_id: str) -> Path:
    """Write what the server takes: an answer to every question of the whole test, empty where none was asked.

    Raises:
        UserError: If the file of the whole test is malformed.
    """
    answers = {response.question.id: response.text for response in responses}
    ids = list(answers)
    if split.startswith("test") and (folder / WHOLE_TEST).exists():
        ids = [line["question_id"] for line in read_jsonl(folder / WHOLE_TEST, "question_id")]
    path = folder / "answers_upload" / f"llava_vqav2_mscoco_{split}" / f"{run_id}.json"
    return write_json(path, submission(answers, ids))


def submission(answers: dict[str | int, str], ids: Iterable[str | int]) -> list[JsonObject]:
    """Return the document that the server takes."""
    return [{"question_id": key, "answer": normal_answer(answers.get(key, ""))} for key in ids]


def _lines(folder: Path, split: str) -> list[JsonObject]:
    """Read LLaVA's file of questions, or the official one, whose questions lack the instruction."""
    official = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    path = folder / f"llava_vqav2_mscoco_{split}.jsonl"
    if path.exists() or not official.exists():
        return read_jsonl(path, "question_id", "image", "text")
    items = require_keys(read_json(official), ("questions",), str(official))["questions"]
    lines = []
    for number, item in enumerate(items):
        keys = ("question_id", "image_id", "question")
        require_keys(item, keys, f"{official}, question {number}", image_id=INTEGER)
        # The images of the part test-dev2015 are named after the whole.
        image = f"COCO_{image_folder(split)}_{item['image_id']:012d}.jpg"
        text = with_instruction(item["question"])
        lines.append({"question_id": item["question_id"], "image": image, "text": text})
    return lines


def _annotations(path: Path) -> dict[int | str, JsonObject]:
    if not path.exists():
        return {}
    items = require_keys(read_json(path), ("annotations",), str(path))["annotations"]
    for number, item in enumerate(items):
        require_keys(item, ("question_id",), f"{path}, annotation {number}")
    return {item["question_id"]: item for item in items}


VQAV2 = Benchmark(
    name="vqav2",
    title="VQAv2 (Acc)",
    folder="vqav2",
    needs=(
        "llava_vqav2_mscoco_{split}.jsonl|v2_OpenEnded_mscoco_{split}_questions.json",
        "{images}",
    ),
    images=image_folder,
    load=load,
    splits=SPLITS,
    answers="answers/llava_vqav2_mscoco_{split}/{id}/merge.jsonl",
    mark=mark,
    export=export,
)
