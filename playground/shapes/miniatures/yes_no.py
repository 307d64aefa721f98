"""Miniatures of the benchmarks that want yes or no: POPE and MME."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import numpy as np

from llava.eval.files import JsonObject
from playground.shapes.miniatures.base import Files, ask_plainly, choose, jpeg, jsonl_file, png
from playground.shapes.miniatures.words import WORDS, picture_with_word
from playground.shapes.questions import SHORT_ANSWER, with_article
from playground.shapes.world import COLORS, SHAPES, Scene, stream

POPE_CATEGORIES = ("adversarial", "popular", "random")
POPE_SCENES = 4
# Of each answer, in every category, about every picture.
POPE_QUESTIONS = 2

MME_INSTRUCTION = " Please answer yes or no."
# Pictures of each category; about those of the first four the scene says most.
MME_PICTURES = {
    **dict.fromkeys(("existence", "count", "position", "color"), 2),
    **dict.fromkeys(("posters", "celebrity", "scene", "landmark", "artwork", "OCR"), 1),
    **dict.fromkeys(("commonsense_reasoning", "numerical_calculation"), 1),
    **dict.fromkeys(("text_translation", "code_reasoning"), 1),
}
# These have their pictures and their questions in folders of their own.
MME_DIVIDED = ("landmark", "artwork")
MME_PNG = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope(scenes: Iterator[Scene]) -> Files:
    """Make 48 questions about 4 pictures, half of them about what is there.

    What is not there is, in the three categories: a color and a shape of different things of the picture;
    the shapes that occur most often in the other pictures; a color and a shape of nothing in the picture.
    """
    files: Files = {}
    chosen = list(islice(scenes, POPE_SCENES))
    lines: list[JsonObject] = []
    for category in POPE_CATEGORIES:
        labels: list[JsonObject] = []
        for number, scene in enumerate(chosen):
            image = f"COCO_val2014_{310_196 + number:012d}.jpg"
            files[f"val2014/{image}"] = jpeg(scene.render())
            for name, label in _pope_names(category, scene, chosen):
                text = f"Is there {with_article(name)} in the image?"
                labels.append({"question_id": len(labels) + 1, "image": image, "text": text, "label": label})
        files[f"coco/coco_pope_{category}.json"] = jsonl_file(labels)
        # LLaVA's ids go on from category to category, the official ones begin again.
        lines += [
            {
                "question_id": len(lines) + number,
                "image": label["image"],
                "text": f"{label['text']}{SHORT_ANSWER}",
                "category": category,
            }
            for number, label in enumerate(labels)
        ]
    files["llava_pope_test.jsonl"] = jsonl_file(lines)
    return files


def mme(scenes: Iterator[Scene]) -> Files:
    """Make 36 questions about 18 pictures in 14 categories, of each picture one for yes and one for no."""
    files: Files = {}
    lines = []
    for category, count in MME_PICTURES.items():
        folder = f"MME_Benchmark_release_version/{category}/"
        pictures, questions = ("images/", "questions_answers_YN/") if category in MME_DIVIDED else ("", "")
        for number, scene in enumerate(islice(scenes, count), start=1):
            image = f"{number:04d}.{'png' if category in MME_PNG else 'jpg'}"
            word = WORDS[number] if category == "OCR" else ""
            picture = picture_with_word(scene, word) if word else scene.render()
            files[f"{folder}{pictures}{image}"] = png(picture) if category in MME_PNG else jpeg(picture)
            pair = _mme_pair(category, scene, word)
            lines += [
                {
                    "question_id": f"{category}/{image}",
                    "image": f"{category}/{image}",
                    "text": question + SHORT_ANSWER,
                    "category": category,
                }
                for question in pair
            ]
            truth = [
                f"{question}{MME_INSTRUCTION}\t{answer}\n"
                for question, answer in zip(pair, ("Yes", "No"), strict=True)
            ]
            files[f"{folder}{questions}{number:04d}.txt"] = "".join(truth).encode()
    files["llava_mme.jsonl"] = jsonl_file(lines)
    return files


def _pope_names(category: str, scene: Scene, scenes: Sequence[Scene]) -> list[tuple[str, str]]:
    """Return what is asked for, things that are there and that are not in turn, with the labels."""
    there = [thing.name for thing in scene.things][:POPE_QUESTIONS]
    absent = _POPE_ABSENT[category](scene, scenes)[:POPE_QUESTIONS]
    pairs = zip(there, absent, strict=True)
    return [(name, label) for pair in pairs for name, label in zip(pair, ("yes", "no"), strict=True)]


def _nearly_there(scene: Scene, _scenes: Sequence[Scene]) -> list[str]:
    return [f"{one.color} {other.shape}" for one, other in pairwise(scene.things)]


def _often_elsewhere(scene: Scene, scenes: Sequence[Scene]) -> list[str]:
    counts = Counter(thing.shape for other in scenes for thing in other.things)
    here = {thing.shape for thing in scene.things}
    return sorted((shape for shape in SHAPES if shape not in here), key=lambda shape: -counts[shape])


def _not_there_at_all(scene: Scene, _scenes: Sequence[Scene]) -> list[str]:
    here = {word for thing in scene.things for word in (thing.color, thing.shape)}
    colors, shapes = ([word for word in words if word not in here] for words in (COLORS, SHAPES))
    rng = stream(scene.seed, "words")
    return [f"{choose(colors, rng)} {shape}" for shape in shapes]


_POPE_ABSENT = {"adversarial": _nearly_there, "popular": _often_elsewhere, "random": _not_there_at_all}


def _mme_pair(category: str, scene: Scene, word: str) -> tuple[str, str]:
    """Return a question to be answered with yes and one to be answered with no."""
    rng = stream(scene.seed, "words")
    if category == "OCR":
        other = choose([other for other in WORDS if other != word], rng)
        right, wrong = (f'Is the word on the sign "{shown}"?' for shown in (word, other))
        return right, wrong
    if category in _MME_PAIRS:
        return _MME_PAIRS[category](scene, rng)
    yes, no = (ask_plainly(scene, rng, "presence", answer).text for answer in ("yes", "no"))
    return yes, no


def _existence(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    here = [thing.shape for thing in scene.things]
    return _is_there(choose(here, rng)), _is_there(choose([name for name in SHAPES if name not in here], rng))


def _color(scene: Scene, _rng: np.random.Generator) -> tuple[str, str]:
    return _is_there(scene.things[0].name), _is_there(_nearly_there(scene, ())[0])


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    count = len(scene.things)
    wrong = count + (1 if rng.integers(2) else -1)
    return f"Are there {count} shapes in the image?", f"Are there {wrong} shapes in the image?"


def _position(scene: Scene, _rng: np.random.Generator) -> tuple[str, str]:
    top, bottom = scene.things[0].name, scene.things[-1].name
    return f"Is the {top} above the {bottom}?", f"Is the {bottom} above the {top}?"


def _is_there(name: str) -> str:
    return f"Is there {with_article(name)} in the image?"


_MME_PAIRS = {"existence": _existence, "count": _count, "position": _position, "color": _color}
