"""TextVQA (arXiv:1904.08920): questions about text in photographs; the prompts quote what OCR has read."""

from pathlib import Path

from llava.errors import UserError
from llava.eval.benchmark import Benchmark, Question
from llava.eval.benchmarks.vqa import mark, require_ten
from llava.eval.files import read_json, read_jsonl, require_keys

OCR_LINE = "Reference OCR token: "
ANNOTATIONS = "TextVQA_0.5.1_val.json"
Key = tuple[str, str]
"""Id of an image, and a question in lower case."""


def load(folder: Path, _split: str) -> list[Question]:
    """Read the questions, and people's answers joined by image and question.

    Raises:
        UserError: If a file is missing or malformed, or a question has no annotation.
    """
    answers = read_annotations(folder / ANNOTATIONS)
    path = folder / "llava_textvqa_val_v051_ocr.jsonl"
    questions = []
    for line in read_jsonl(path, "question_id", "image", "text"):
        key = (str(line["question_id"]), question_of_prompt(line["text"]).lower())
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=folder / "train_images" / line["image"],
                unit=line["image"],
                target=answers_to(key, answers, path),
            )
        )
    return questions


def read_annotations(path: Path) -> dict[Key, list[str]]:
    """Read the official file: people's answers by image and question.

    Raises:
        UserError: If it is missing or malformed.
    """
    items = require_keys(read_json(path), ("data",), str(path))["data"]
    found = {}
    for number, item in enumerate(items):
        where = f"{path}, item {number} of 'data'"
        require_keys(item, ("image_id", "question", "answers"), where)
        key = (str(item["image_id"]), item["question"].lower())
        found[key] = list(require_ten(item["answers"], f"{where}, {item['question']!r:.80},"))
    return found


def answers_to(key: Key, answers: dict[Key, list[str]], source: Path) -> list[str]:
    """Return people's answers to a question.

    Raises:
        UserError: If there are none.
    """
    if key not in answers:
        raise UserError(f"{source}: the question {key[1]!r} about image {key[0]} is not in {ANNOTATIONS}")
    return answers[key]


def question_of_prompt(prompt: str) -> str:
    """Recover the question from a prompt of LLaVA, in any of its forms.

    Raises:
        UserError: If it has none of them.
    """
    lines = prompt.split("\n")
    if prompt.startswith("OCR tokens: "):
        _, found, rest = prompt.partition("Question: ")
        if found and " Short answer:" in rest:
            return rest.partition(" Short answer:")[0]
    elif OCR_LINE in prompt and len(lines) == 3:
        return lines[1] if prompt.startswith(OCR_LINE) else lines[0]
    elif len(lines) == 2:
        return lines[0]
    raise UserError(
        f"{prompt!r:.120} is no prompt of TextVQA; expected a question, an instruction on a line of its own "
        f"and maybe between them a line '{OCR_LINE}...'"
    )


TEXTVQA = Benchmark(
    name="textvqa",
    title="TextVQA (Acc)",
    folder="textvqa",
    needs=("llava_textvqa_val_v051_ocr.jsonl", ANNOTATIONS, "train_images"),
    load=load,
    mark=mark,
)
