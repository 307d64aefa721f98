"""Miniatures of the benchmarks that want an option's letter: MMBench, SEED-Bench, ScienceQA and Q-Bench."""

import base64
import csv
import io
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
from PIL import Image, ImageFilter

from llava.constants import OPTION_LETTER
from llava.eval.files import JsonObject
from playground.shapes.miniatures.base import Files, jpeg, json_file, jsonl_file, png
from playground.shapes.miniatures.options import (
    CHINESE,
    ENGLISH,
    LETTERS,
    TOPICS,
    Language,
    OptionQuestion,
    ask_with_options,
)
from playground.shapes.world import Scene, stream

MMBENCH_COLUMNS = (
    *("index", "question", "hint", *LETTERS, "answer", "category", "image"),
    *("source", "l2-category", "comment", "split"),
)
MMBENCH_CATEGORIES = {
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "shape": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "presence": ("image_scene", "coarse_perception"),
    "count": ("object_localization", "finegrained_perception (instance-level)"),
    "position": ("spatial_relationship", "finegrained_perception (cross-instance)"),
    "which": ("image_topic", "coarse_perception"),
}

SEED_TYPES = {
    "Scene Understanding": 1,
    "Instance Identity": 2,
    "Instance Attributes": 3,
    "Instances Counting": 5,
}
SEED_TOPICS = {"which": 1, "shape": 2, "color": 3, "count": 5}
SEED_VIDEO_TYPES = {"Action Recognition": 10}

# Question, options, index of the right one and hint of what is asked about no picture.
SCIENCE_FACTS = (
    ("Which shape has three corners?", ("circle", "triangle"), 1, ""),
    ("Which shape has four sides of the same length?", ("square", "triangle", "ring"), 0, ""),
    ("Which shape has no corner?", ("star", "cross", "circle"), 2, "A corner is where two sides meet."),
    ("Which shape has a hole in its middle?", ("ring", "heart"), 0, ""),
    ("How many corners does a square have?", ("two", "three", "four", "five"), 2, ""),
    ("Which color is mixed from red and yellow paint?", ("orange", "green", "purple"), 0, ""),
    ("Which color is mixed from blue and yellow paint?", ("pink", "green"), 1, ""),
    ("Which color is the darkest?", ("yellow", "black", "pink", "orange"), 1, "Dark colors reflect little."),
)
SCIENCE_TOPICS = ("color", "shape", "count", "position", "presence")


def _mmbench(language: Language, name: str, scenes: Iterator[Scene]) -> Files:
    """Make 24 questions about a picture each, four of each topic; every fifth has a hint."""
    table = io.StringIO()
    rows = csv.DictWriter(table, MMBENCH_COLUMNS, delimiter="\t", lineterminator="\n")
    rows.writeheader()
    topics = tuple(TOPICS)
    for number, scene in enumerate(islice(scenes, 4 * len(topics))):
        question = ask_with_options(
            scene, stream(scene.seed, "words"), topics[number % len(topics)], language
        )
        category, above = MMBENCH_CATEGORIES[question.topic]
        rows.writerow(
            {
                "index": 200 + number,
                "question": question.text,
                "hint": language.hint if number % 5 == 0 else "",
                # With fewer than four options the last cells stay empty.
                **dict(zip(LETTERS, question.options, strict=False)),
                "answer": question.letter,
                "category": category,
                "image": base64.b64encode(jpeg(scene.render())).decode(),
                "source": "shapes",
                "l2-category": above,
                "split": "dev",
            }
        )
    return {name: table.getvalue().encode()}


mmbench = partial(_mmbench, ENGLISH, "mmbench_dev_20230712.tsv")
mmbench_cn = partial(_mmbench, CHINESE, "mmbench_dev_cn_20231003.tsv")


def seed_bench(scenes: Iterator[Scene]) -> Files:
    """Make 20 questions about 5 pictures, and 4 about the middle frame of a video each."""
    files: Files = {}
    lines, official = [], []
    for number, scene in enumerate(islice(scenes, 9)):
        rng, is_video = stream(scene.seed, "words"), number >= 5
        topics = {"which": SEED_VIDEO_TYPES["Action Recognition"]} if is_video else SEED_TOPICS
        # The real pictures have no suffix either; frames are named after their question.
        data_id = f"video_{number:04d}.mp4" if is_video else f"{number:07d}_{scene.seed}"
        name = 70_000 + number if is_video else 100_000 + 4 * number
        image = f"SEED-Bench-video-image/{name}.png" if is_video else f"SEED-Bench-image/{data_id}"
        files[image] = (png if is_video else jpeg)(scene.render())
        for turn, (topic, type_id) in enumerate(topics.items()):
            question = ask_with_options(scene, rng, topic)
            text = "\n".join([question.text, *question.lines, OPTION_LETTER])
            lines.append({"question_id": name + turn, "image": image, "text": text})
            official.append(
                {
                    "question_id": str(name + turn),
                    "question_type_id": type_id,
                    "data_type": "video" if is_video else "image",
                    "data_id": data_id,
                    "question": question.text,
                    **{
                        f"choice_{letter.lower()}": option
                        for letter, option in zip(LETTERS, question.options, strict=True)
                    },
                    "answer": question.letter,
                }
            )
    files["llava-seed-bench.jsonl"] = jsonl_file(lines)
    files["SEED-Bench.json"] = json_file(
        {"questions": official, "question_type": SEED_TYPES | SEED_VIDEO_TYPES}
    )
    return files


def scienceqa(scenes: Iterator[Scene]) -> Files:
    """Make 24 questions: 16 about a picture each, 8 about none."""
    files: Files = {}
    problems, samples = {}, []
    for number in range(24):
        name = str(4 + 7 * number)
        if number % 3 == 2:
            text, options, right, hint = SCIENCE_FACTS[number // 3]
            question, has_image = OptionQuestion(text, options, right), False
        else:
            scene = next(scenes)
            topic = SCIENCE_TOPICS[number % len(SCIENCE_TOPICS)]
            question, has_image = ask_with_options(scene, stream(scene.seed, "words"), topic), True
            hint = "Look at the picture." if number % 2 else ""
            files[f"images/test/{name}/image.png"] = png(scene.render())
        problems[name] = _problem(question, hint, has_image)
        samples.append(_science_sample(name, problems[name]))
    files["problems.json"] = json_file(problems)
    files["pid_splits.json"] = json_file({"train": [], "val": [], "test": list(problems)})
    files["llava_test_CQM-A.json"] = json_file(samples)
    return files


def _problem(question: OptionQuestion, hint: str, has_image: bool) -> JsonObject:
    return {
        "question": question.text,
        "choices": list(question.options),
        "answer": question.right,
        "hint": hint,
        "image": "image.png" if has_image else None,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "shapes",
        "category": "Shapes and colors",
        "skill": "Name shapes and their colors",
        "lecture": "",
        "solution": "",
        "split": "test",
    }


def _science_sample(name: str, problem: JsonObject) -> JsonObject:
    """Return a problem in the format CQM-A: context, question and options, then the answer."""
    options = " ".join(
        f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=False)
    )
    text = f"Context: {problem['hint'] or 'N/A'}\nQuestion: {problem['question']}\nOptions: {options}"
    if problem["image"]:
        text += "\n<image>"
    answer = f"The answer is {LETTERS[problem['answer']]}."
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    image = {"image": f"{name}/{problem['image']}"} if problem["image"] else {}
    return {"id": name, **image, "conversations": turns}


def qbench(scenes: Iterator[Scene]) -> Files:
    """Make 24 questions about a picture each: is it blurred, what color is a shape, how bright is it?"""
    files: Files = {}
    items = []
    for number, scene in enumerate(islice(scenes, 24)):
        rng = stream(scene.seed, "words")
        picture = scene.render()
        is_changed = bool(rng.integers(2))
        if number % 3 == 0:
            picture = picture.filter(ImageFilter.BoxBlur(5)) if is_changed else picture
            right = 0 if is_changed else 1
            question, kind, concern = OptionQuestion("Is this image blurred?", ("Yes", "No"), right), 0, 0
        elif number % 3 == 1:
            question, kind, concern = ask_with_options(scene, rng, "color"), 1, 3
        else:
            picture = _lit(picture, is_dark=is_changed)
            options = ("Very bright", "Medium", "Very dark")
            right = 2 if is_changed else 0
            question, kind, concern = OptionQuestion("How bright is this image?", options, right), 2, 1
        image = f"{number:05d}.jpg"
        files[f"images_llvisionqa/{image}"] = jpeg(picture)
        items.append(
            {
                "img_path": image,
                "question": question.text,
                "candidates": list(question.options),
                "correct_ans": question.options[question.right],
                "type": kind,
                "concern": concern,
            }
        )
    files["llvisionqa_dev.json"] = json_file(items)
    return files


def _lit(picture: Image.Image, is_dark: bool) -> Image.Image:
    pixels = np.asarray(picture) // 4
    return Image.fromarray(pixels if is_dark else 255 - (255 - np.asarray(picture)) // 4)
