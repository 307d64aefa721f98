"""Miniatures of the benchmarks that want a word or two: GQA, VQAv2, VizWiz and TextVQA."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from llava.eval.files import JsonObject
from playground.shapes.miniatures.base import (
    Files,
    ask_plainly,
    choose,
    confident,
    jpeg,
    json_file,
    jsonl_file,
    other_answer,
    ten_answers,
    yes_or_no,
)
from playground.shapes.miniatures.words import WORDS, picture_with_word
from playground.shapes.questions import KINDS, SHORT_ANSWER, Question
from playground.shapes.world import SHAPES, Scene, stream

VIZWIZ_INSTRUCTION = (
    f"\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT_ANSWER}"
)
GQA_TYPES = {
    "color": {"detailed": "directWhich", "semantic": "attr", "structural": "query"},
    "shape": {"detailed": "categoryThat", "semantic": "cat", "structural": "query"},
    "presence": {"detailed": "existAttr", "semantic": "obj", "structural": "verify"},
}


def gqa(scenes: Iterator[Scene]) -> Files:
    """Make 30 questions about 10 pictures, and 2 that are not among the balanced ones and do not count."""
    files: Files = {}
    lines, official = [], {}
    for number, scene in enumerate(islice(scenes, 10)):
        image = f"n{scene.seed % 1_000_000}"
        files[f"data/images/{image}.jpg"] = jpeg(scene.render())
        for turn, question in enumerate(_one_of_each(scene, yes_or_no(number))):
            name = f"20{number:04d}{turn:02d}"
            lines.append(
                {
                    "question_id": name,
                    "image": f"{image}.jpg",
                    "text": question.text + SHORT_ANSWER,
                    "category": "default",
                }
            )
            official[name] = _gqa_question(question, image, is_balanced=True)
        if number < 2:
            # Another answer than the balanced question's, so that it is another question.
            extra = ask_plainly(scene, stream(scene.seed, "words"), "presence", yes_or_no(number + 1))
            official[f"20{number:04d}99"] = _gqa_question(extra, image, is_balanced=False)
    files["llava_gqa_testdev_balanced.jsonl"] = jsonl_file(lines)
    files["data/testdev_balanced_questions.json"] = json_file(official)
    return files


def vqav2(scenes: Iterator[Scene]) -> Files:
    """Make 36 questions of test about 12 pictures, of which the first 24 are those of test-dev.

    The answers of these come with them; those of the real ones are known to the server only.
    """
    files: Files = {}
    lines: list[JsonObject] = []
    annotations = []
    for number, scene in enumerate(islice(scenes, 12)):
        image_id = 262_144 + number
        image = f"COCO_test2015_{image_id:012d}.jpg"
        files[f"test2015/{image}"] = jpeg(scene.render())
        for turn, question in enumerate(_one_of_each(scene, yes_or_no(number))):
            name = image_id * 1000 + turn
            text = question.text + SHORT_ANSWER
            lines.append({"question_id": name, "image": image, "text": text, "category": "default"})
            annotations.append(_vqav2_annotation(name, image_id, question, stream(scene.seed, "words")))
    files["llava_vqav2_mscoco_test2015.jsonl"] = jsonl_file(lines)
    files["llava_vqav2_mscoco_test-dev2015.jsonl"] = jsonl_file(lines[:24])
    files["v2_mscoco_test-dev2015_annotations.json"] = json_file(
        {"data_type": "mscoco", "data_subtype": "test-dev2015", "annotations": annotations[:24]}
    )
    return files


def vizwiz(scenes: Iterator[Scene]) -> Files:
    """Make 24 questions about a picture each; every fourth is about a shape that is not there.

    The answers of the real ones are known to the server only.
    """
    files: Files = {}
    lines, official = [], []
    for number, scene in enumerate(islice(scenes, 24)):
        image, rng = f"VizWiz_test_{number:08d}.jpg", stream(scene.seed, "words")
        files[f"test/{image}"] = jpeg(scene.render())
        if number % 4 == 3:
            absent = choose([shape for shape in SHAPES if shape not in _shapes(scene)], rng)
            text, answer, other = f"What color is the {absent}?", "unanswerable", "white"
        else:
            question = ask_plainly(scene, rng, KINDS[number % 4])
            text, answer, other = question.text, question.answer, other_answer(question, rng)
        lines.append(
            {"question_id": number, "image": image, "text": text + VIZWIZ_INSTRUCTION, "category": "default"}
        )
        official.append(
            {
                "image": image,
                "question": text,
                "answers": confident(ten_answers(answer, other)),
                "answer_type": _answer_type(answer),
                "answerable": int(answer != "unanswerable"),
            }
        )
    files["llava_test.jsonl"] = jsonl_file(lines)
    files["test.json"] = json_file(official)
    return files


def textvqa(scenes: Iterator[Scene]) -> Files:
    """Make 24 questions about 12 pictures; in two of three a word is written, and asked for."""
    files: Files = {}
    lines: list[JsonObject] = []
    official: list[JsonObject] = []
    for number, scene in enumerate(islice(scenes, 12)):
        image, rng = f"{scene.seed:016x}", stream(scene.seed, "words")
        word = WORDS[number % len(WORDS)] if number % 3 else ""
        picture = picture_with_word(scene, word) if word else scene.render()
        files[f"train_images/{image}.jpg"] = jpeg(picture)
        color = ask_plainly(scene, rng, "color")
        asked = [(color.text, ten_answers(color.answer, other_answer(color, rng)))]
        if word:
            asked.append(("What word is written on the sign?", ten_answers(word.lower(), word.lower()[:-1])))
        else:
            shape = ask_plainly(scene, rng, "shape")
            asked.append((shape.text, ten_answers(shape.answer, other_answer(shape, rng))))
        for text, answers in asked:
            # LLaVA's id is that of the image: two questions share it.
            lines.append(
                {
                    "question_id": image,
                    "image": f"{image}.jpg",
                    "text": f"{text}\nReference OCR token: {word}{SHORT_ANSWER}",
                    "category": "default",
                }
            )
            official.append(
                {
                    "question": text.lower(),
                    "image_id": image,
                    "image_width": picture.width,
                    "image_height": picture.height,
                    "answers": answers,
                    "question_id": 34_602 + len(official),
                    "set_name": "val",
                }
            )
    files["llava_textvqa_val_v051_ocr.jsonl"] = jsonl_file(lines)
    files["TextVQA_0.5.1_val.json"] = json_file(
        {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": official}
    )
    return files


def _one_of_each(scene: Scene, presence: str) -> list[Question]:
    """Ask one question of every kind; the one about presence has the given answer."""
    rng = stream(scene.seed, "words")
    return [ask_plainly(scene, rng, kind, presence if kind == "presence" else None) for kind in KINDS]


def _gqa_question(question: Question, image: str, is_balanced: bool) -> JsonObject:
    return {
        "question": question.text,
        "answer": question.answer,
        "fullAnswer": question.answer,
        "imageId": image,
        "isBalanced": is_balanced,
        "types": GQA_TYPES[question.kind],
        "groups": {"global": None, "local": None},
        "semantic": [],
        "semanticStr": "",
        "entailed": [],
        "equivalent": [],
        "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
    }


def _vqav2_annotation(name: int, image_id: int, question: Question, rng: np.random.Generator) -> JsonObject:
    answers = confident(ten_answers(question.answer, other_answer(question, rng)))
    return {
        "question_id": name,
        "image_id": image_id,
        "question_type": " ".join(question.text.lower().split()[:3]),
        "answer_type": _answer_type(question.answer),
        "multiple_choice_answer": question.answer,
        "answers": [answer | {"answer_id": index} for index, answer in enumerate(answers, start=1)],
    }


def _answer_type(answer: str) -> str:
    if answer == "unanswerable":
        return answer
    return "yes/no" if answer in ("yes", "no") else "other"


def _shapes(scene: Scene) -> set[str]:
    return {thing.shape for thing in scene.things}
