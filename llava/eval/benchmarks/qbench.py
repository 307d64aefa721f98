"""Q-Bench (arXiv:2309.14181): questions with options about an image's quality, in English and Chinese."""

from collections.abc import Sequence
from pathlib import Path

from llava.engine.base import Generation
from llava.eval.benchmark import Benchmark, Mark, Question, Response
from llava.eval.benchmarks.options import LETTERS, chosen_letter, option_lines, require_letters
from llava.eval.files import JsonObject, first_file, read_objects, write_jsonl

ENGLISH = ("llvisionqa_dev", "llvisionqa_test")
CHINESE = ("质衡-问答-验证集", "质衡-问答-测试集")  # dev and test
IMAGE_FOLDERS = ("images_llvisionqa", "images_llviqionqa")  # LLaVA's documentation has the second
INSTRUCTIONS = {"en": "Choose between one of the options as follows:", "zh": "请从下列选项中选择一个:"}


def load(folder: Path, split: str) -> list[Question]:
    """Read the questions of a split, and the right options where they are public.

    Raises:
        UserError: If the file is missing or malformed.
    """
    language = "zh" if split in CHINESE else "en"
    return load_questions(folder / f"{split}.json", first_file(folder, IMAGE_FOLDERS), language)


def load_questions(path: Path, image_folder: Path, language: str) -> list[Question]:
    """Read a file of questions.

    Args:
        path: JSON list.
        image_folder: Where their images lie.
        language: ``en`` or ``zh``.

    Raises:
        UserError: If it is missing or malformed.
    """
    questions = []
    keys = ("img_path", "question", "candidates", "correct_ans?")
    for number, item in enumerate(read_objects(path, *keys)):
        candidates, right = item["candidates"], item.get("correct_ans")
        require_letters(candidates, f"{path}, item {number}")
        questions.append(
            Question(
                id=number,
                text="\n".join([item["question"], INSTRUCTIONS[language], option_lines(candidates)]),
                image=image_folder / item["img_path"],
                unit=item["img_path"],
                group=str(item.get("type", "")),
                target=LETTERS[candidates.index(right)] if right in candidates else None,
                extra={"options": candidates},
            )
        )
    return questions


def mark(response: Response) -> Mark:
    """Compare the option that is meant with the right one."""
    question = response.question
    letter = chosen_letter(response.text, question.extra["options"])
    return Mark(question.unit, float(response.error is None and letter == question.target), question.group)


def export(responses: Sequence[Response], folder: Path, split: str, run_id: str) -> Path:
    """Write the questions with the responses to them, as Q-Bench takes them.

    Raises:
        UserError: If the file of questions or the export does not serve.
    """
    items = read_objects(folder / f"{split}.json")
    path = folder / "answers_upload" / split / f"{run_id}.jsonl"
    return write_jsonl(path, answered(items, [response.text for response in responses]))


def answered(items: Sequence[JsonObject], texts: Sequence[str]) -> list[JsonObject]:
    """Return Q-Bench's items with the responses to them."""
    return [{**item, "response": text} for item, text in zip(items, texts, strict=True)]


QBENCH = Benchmark(
    name="qbench",
    title="Q-Bench (Acc)",
    folder="qbench",
    needs=("{split}.json", "|".join(IMAGE_FOLDERS)),
    load=load,
    splits=ENGLISH + CHINESE,
    answers="answers/{split}/{id}.jsonl",
    mark=mark,
    export=export,
    generation=Generation(max_new_tokens=1024),
    template="llava_v1",
)
