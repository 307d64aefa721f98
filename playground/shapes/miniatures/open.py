"""Miniatures of the benchmarks that a judge scores: MM-Vet and LLaVA-Bench (in the wild)."""

from collections.abc import Iterator
from itertools import islice

from llava.eval.files import JsonObject
from playground.shapes.miniatures.base import Files, ask_plainly, jpeg, json_file, jsonl_file
from playground.shapes.miniatures.words import WORDS, picture_with_word
from playground.shapes.questions import DESCRIPTION_TEMPLATES, describe, with_article
from playground.shapes.world import Scene, stream

NUMBER_WORDS = {3: "three", 4: "four", 5: "five"}
# Who wrote the answers that the real benchmark has from GPT-4.
REFERENCE_MODEL = "shapes-scene"


def mm_vet(scenes: Iterator[Scene]) -> Files:
    """Make 24 questions about 12 pictures, half of them about two things at once."""
    files: Files = {}
    lines: list[JsonObject] = []
    official = {}
    for number, scene in enumerate(islice(scenes, 12)):
        word = WORDS[number % len(WORDS)] if number % 3 == 0 else ""
        image = f"v1_{2 * number}.jpg"
        picture = picture_with_word(scene, word) if word else scene.render()
        files[f"images/{image}"] = jpeg(picture)
        for text, answer, capability in _vet_questions(scene, word, number):
            name = len(lines)
            lines.append({"question_id": name, "image": image, "text": text})
            official[f"v1_{name}"] = {
                "imagename": image,
                "question": text,
                "answer": answer,
                "imagesource": "shapes",
                "capability": capability,
            }
    files["llava-mm-vet.jsonl"] = jsonl_file(lines)
    files["mm-vet.json"] = json_file(official)
    return files


def llava_bench(scenes: Iterator[Scene]) -> Files:
    """Make 24 questions about 8 pictures: one of each category about every picture."""
    files: Files = {}
    questions: list[JsonObject] = []
    contexts, answers = [], []
    for number, scene in enumerate(islice(scenes, 8), start=1):
        image = f"{number:03d}.jpg"
        files[f"images/{image}"] = jpeg(scene.render())
        contexts.append({"image": image, "caption": _caption(scene)})
        for category, text, answer in _bench_questions(scene, number):
            name = len(questions)
            questions.append({"question_id": name, "image": image, "text": text, "category": category})
            answers.append(
                {
                    "question_id": name,
                    "prompt": text,
                    "text": answer,
                    "answer_id": f"{REFERENCE_MODEL}-{name}",
                    "model_id": REFERENCE_MODEL,
                    "metadata": {},
                }
            )
    files["questions.jsonl"] = jsonl_file(questions)
    files["context.jsonl"] = jsonl_file(contexts)
    files["answers_gpt4.jsonl"] = jsonl_file(answers)
    return files


def _vet_questions(scene: Scene, word: str, number: int) -> list[tuple[str, str, list[str]]]:
    """Return two questions with their answers, where ``<AND>`` asks for all and ``<OR>`` for one of them."""
    color = ask_plainly(scene, stream(scene.seed, "words"), "color")
    if word:
        both = f"What word is on the sign? {color.text}"
        return [
            ("What word is on the sign?", word.lower(), ["ocr"]),
            (both, f"{word.lower()}<AND>{color.answer}", ["ocr", "rec"]),
        ]
    if number % 3 == 1:
        text = "Which shape is at the top of the image, and which is at the bottom?"
        count = len(scene.things)
        return [
            (text, f"{scene.things[0].shape}<AND>{scene.things[-1].shape}", ["rec", "spat"]),
            ("How many shapes are there?", f"{count}<OR>{NUMBER_WORDS[count]}", ["rec", "math"]),
        ]
    names = "<AND>".join(thing.name for thing in scene.things)
    return [(color.text, color.answer, ["rec"]), ("Describe the picture.", names, ["rec", "gen"])]


def _bench_questions(scene: Scene, number: int) -> list[tuple[str, str, str]]:
    """Return a question of every category with the answer of one who sees everything."""
    color = ask_plainly(scene, stream(scene.seed, "words"), "color")
    top, bottom = scene.things[0], scene.things[-1]
    return [
        ("conv", color.text, f"It is {color.answer}."),
        (
            "detail",
            DESCRIPTION_TEMPLATES[number % len(DESCRIPTION_TEMPLATES)],
            f"The image shows {describe(scene)}, from top to bottom.",
        ),
        (
            "complex",
            f"If the {top.shape} and the {bottom.shape} changed places, which color would be at the top?",
            f"{bottom.color.capitalize()}, because the {bottom.name} would be where the {top.name} is.",
        ),
    ]


def _caption(scene: Scene) -> str:
    things = ", ".join(
        f"{with_article(thing.name)} at ({thing.x:.0f}, {thing.y:.0f})" for thing in scene.things
    )
    return (
        "An image of 224 by 224 pixels with shapes on a plain or patterned background. "
        f"From top to bottom, with the pixels of their centers from the left and from the top: {things}."
    )
