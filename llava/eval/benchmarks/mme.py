"""MME (arXiv:2306.13394): two questions about each image, one with the answer yes and one with no."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.constants import SHORT_ANSWER
from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Benchmark, Mark, Metrics, Question, Response, percent
from llava.eval.files import is_there, read_jsonl, read_text, write_text

RELEASE = "MME_Benchmark_release_version"
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
POINTS_PER_CATEGORY = 200
YES_OR_NO = "Please answer yes or no."


@dataclass(frozen=True, slots=True)
class Truth:
    """A question as MME has it.

    Attributes:
        question: With MME's own instruction.
        answer: ``Yes`` or ``No``.
    """

    question: str
    answer: str


def load(folder: Path, _split: str) -> list[Question]:
    """Read LLaVA's questions, and MME's own with the right answers, joined by category, image and words.

    Raises:
        UserError: If a file is missing or malformed, or a question is not among MME's.
    """
    path, release = folder / "llava_mme.jsonl", folder / RELEASE
    questions = []
    for line in read_jsonl(path, "question_id", "image", "text"):
        category, _, file = str(line["question_id"]).rpartition("/")
        questions.append(
            Question(
                id=line["question_id"],
                text=line["text"],
                image=_image(release, category, line["image"]),
                unit=f"{category}/{file}",
                group=category,
                target=_find_truth(release, category, file, line["text"]),
            )
        )
    return questions


def _image(release: Path, category: str, name: str) -> Path:
    """Return where an image lies: some categories have a folder ``images``."""
    places = [release / name, release / category / "images" / Path(name).name]
    return next((place for place in places if is_there(place)), places[0])


def _find_truth(release: Path, category: str, file: str, text: str) -> Truth:
    known = _read_truth(release, category, Path(file).stem)
    bare = text.replace(SHORT_ANSWER, "").replace(YES_OR_NO, "").strip()
    for space in (" ", "  "):  # MME's files have both
        if (question := f"{bare}{space}{YES_OR_NO}") in known:
            return Truth(question, known[question])
    raise UserError(f"MME has no question {bare!r} about {category}/{file}; it has {', '.join(known)}")


def _read_truth(release: Path, category: str, stem: str) -> dict[str, str]:
    places = [release / category / f"{stem}.txt", release / category / "questions_answers_YN" / f"{stem}.txt"]
    path = next((place for place in places if is_there(place)), None)
    if path is None:
        raise MissingFileError(f"there is neither {places[0]} nor {places[1]}")
    truth = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            question, tab, answer = line.partition("\t")
            if not tab or answer.strip().lower() not in ("yes", "no"):
                raise UserError(
                    f"{path}, line {number} is {line!r:.80}; expected a question, a tab, Yes or No"
                )
            truth[question.strip()] = answer.strip()
    return truth


def says(text: str) -> str:
    """Read an answer as MME's scorer does: ``yes``, ``no`` or ``other``."""
    text = text.lower()
    if text in ("yes", "no"):
        return text
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def mark(response: Response) -> Mark:
    """Compare with the right answer."""
    question = response.question
    is_right = response.error is None and says(response.text) == question.target.answer.lower()
    return Mark(question.unit, float(is_right), question.group)


def metrics(marks: Sequence[Mark]) -> Metrics:
    """Return MME's points: of perception (up to 2000), of cognition (up to 800), and of each category.

    A category has 100 points for its questions, and 100 for its images both of whose questions are right.
    """
    by_category: dict[str, list[Mark]] = {}
    for item in marks:
        by_category.setdefault(item.group, []).append(item)
    points = {name: _points(items) for name, items in by_category.items()}
    return {
        "perception": sum(points.get(name, 0.0) for name in PERCEPTION),
        "cognition": sum(points.get(name, 0.0) for name in COGNITION),
    } | points


def _points(marks: Sequence[Mark]) -> float:
    by_image: dict[str, list[float]] = {}
    for item in marks:
        by_image.setdefault(item.unit, []).append(item.points)
    return percent([item.points for item in marks]) + percent([min(points) for points in by_image.values()])


def export(responses: Sequence[Response], folder: Path, _split: str, run_id: str) -> Path:
    """Write what MME's ``calculation.py`` reads: a file for each category, and return their folder.

    Raises:
        UserError: If a file cannot be written.
    """
    target = folder / "eval_tool" / "answers" / run_id
    order = {response.question.unit: number for number, response in enumerate(responses)}
    lines: dict[str, list[str]] = {}
    # Each two lines are those of one image to that scorer.
    for response in sorted(responses, key=lambda response: order[response.question.unit]):
        question, truth = response.question, response.question.target
        file = str(question.id).rpartition("/")[2]
        answer = " ".join(response.text.split())  # a line holds one answer
        lines.setdefault(question.group, []).append("\t".join([file, truth.question, truth.answer, answer]))
    for category, own in lines.items():
        write_text(target / f"{category}.txt", "".join(f"{line}\n" for line in own))
    return target


MME = Benchmark(
    name="mme",
    title="MME (Perception)",
    folder="MME",
    needs=("llava_mme.jsonl", RELEASE),
    load=load,
    mark=mark,
    metrics=metrics,
    best=POINTS_PER_CATEGORY * len(PERCEPTION),
    export=export,
)
