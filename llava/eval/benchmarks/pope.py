"""POPE (arXiv:2305.10355): is an object there? Its splits differ in how absent objects are chosen."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from llava.constants import SHORT_ANSWER
from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Benchmark, Mark, Metrics, Question, Response
from llava.eval.files import read_jsonl

LABELS_PREFIX = "coco_pope_"


def load(folder: Path, _split: str) -> list[Question]:
    """Read the questions and their labels.

    Raises:
        UserError: If a file is malformed, or a question has no label.
    """
    return load_questions(folder / "llava_pope_test.jsonl", folder / "coco", folder / "val2014")


def load_questions(
    question_file: Path, annotation_folder: Path, image_folder: Path, *, every_category: bool = True
) -> list[Question]:
    """Read questions, and labels joined by category, image and question.

    The published scorer joins them by their position, which breaks when a line is missing.

    Args:
        question_file: LLaVA's.
        annotation_folder: Has a file of labels for each category.
        image_folder: Where the images lie.
        every_category: Whether every category must have labels; else those without are left out.

    Raises:
        UserError: If a file is malformed, or a question has no label.
    """
    labels = read_labels(annotation_folder)
    categories = {category for category, _, _ in labels}
    questions = []
    for line in read_jsonl(question_file, "question_id", "image", "text", "category"):
        if not every_category and line["category"] not in categories:
            continue
        key = (line["category"], line["image"], bare(line["text"]))
        if key not in labels:
            raise UserError(
                f"{question_file}: question {line['question_id']} has no label in {annotation_folder} "
                f"(category, image, text: {key})"
            )
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=image_folder / line["image"],
                unit=line["image"],
                group=line["category"],
                target=labels[key],
            )
        )
    return questions


def read_labels(folder: Path) -> dict[tuple[str, str, str], str]:
    """Read ``coco_pope_<category>.json``: yes or no by category, image and question.

    Raises:
        MissingFileError: If the folder holds no such file.
        UserError: If one is malformed.
    """
    labels = {}
    files = sorted(folder.glob(f"{LABELS_PREFIX}*.json"))
    if not files:
        raise MissingFileError(f"there are no label files {LABELS_PREFIX}<category>.json in {folder}")
    for path in files:
        category = path.stem.removeprefix(LABELS_PREFIX)
        for line in read_jsonl(path, "image", "text", "label"):
            labels[category, line["image"], line["text"].strip()] = says(line["label"])
    return labels


def bare(text: str) -> str:
    """Return a question without LLaVA's instruction."""
    return text.strip().removesuffix(SHORT_ANSWER).strip()


def says(text: str) -> str:
    """Read an answer as the published scorer does: ``no`` if its first sentence has one of three words."""
    words = text.split(".", maxsplit=1)[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def mark(response: Response) -> Mark:
    """Compare with the label."""
    question = response.question
    is_right = response.error is None and says(response.text) == question.target
    return Mark(question.unit, float(is_right), question.group, expected=question.target)


def metrics(marks: Sequence[Mark]) -> Metrics:
    """F1 of ``yes`` averaged over the splits; of each, also accuracy, precision, recall and share of yes."""
    by_split = {
        split: _metrics_of_split([mark for mark in marks if mark.group == split])
        for split in sorted({mark.group for mark in marks})
    }
    mean = fmean(values["f1"] for values in by_split.values()) if by_split else 0.0
    each = {f"{split} {name}": value for split, values in by_split.items() for name, value in values.items()}
    return {"f1": mean} | each


def _metrics_of_split(marks: Sequence[Mark]) -> Metrics:
    counts = confusion(marks)
    found, said, there = counts["TP"], counts["TP"] + counts["FP"], counts["TP"] + counts["FN"]
    return {
        "f1": _percent(2 * found, said + there),
        "accuracy": _percent(found + counts["TN"], len(marks)),
        "precision": _percent(found, said),
        "recall": _percent(found, there),
        "yes": _percent(said, len(marks)),
    }


def confusion(marks: Sequence[Mark]) -> dict[str, int]:
    """Count true and false ``yes`` (TP, FP) and ``no`` (TN, FN)."""
    counts = dict.fromkeys(("TP", "FP", "TN", "FN"), 0)
    for item in marks:
        if item.expected == "yes":
            counts["TP" if item.points else "FN"] += 1
        else:
            counts["TN" if item.points else "FP"] += 1
    return counts


def _percent(count: int, of: int) -> float:
    """Return a share in percent; 0 of none, where the published scorer divides by zero."""
    return 100 * count / of if of else 0.0


POPE = Benchmark(
    name="pope",
    title="POPE (Avg. F1)",
    folder="pope",
    needs=("llava_pope_test.jsonl", "coco", "val2014"),
    load=load,
    mark=mark,
    metrics=metrics,
)
