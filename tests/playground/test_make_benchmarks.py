import base64
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava.eval.benchmarks import pope
from llava.eval.files import read_json, read_jsonl, writing
from llava.image_io import load_image, load_image_bytes
from playground.shapes import make_benchmarks
from playground.shapes.make_benchmarks import MINIATURES, STAMP, UNFINISHED, make
from playground.shapes.miniatures.base import clear_scenes
from playground.shapes.miniatures.words import LETTERS, WORDS
from playground.shapes.questions import SHORT_ANSWER, named_words
from playground.shapes.world import HELD_OUT, TRAIN, Scene

OPTION_LETTER = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("miniatures") / "eval"
    make(folder)
    return folder


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return make_benchmarks.contents()


def scenes_of(folder: str) -> Iterator[Scene]:
    return clear_scenes(next(item.start for item in MINIATURES if item.folder == folder))


def scenes_by_image(folder: str, images: list[str]) -> dict[str, Scene]:
    """The scene of each image, by the order in which the questions name them."""
    return dict(zip(dict.fromkeys(images), scenes_of(folder), strict=False))


def truth(text: str, scene: Scene) -> str:
    """The answer to a question about color, shape or presence, worked out from the scene alone."""
    words = named_words(text)
    if text.startswith(("Is there", "Do you see", "Does the picture")):
        return "yes" if any(set(words) <= {thing.color, thing.shape} for thing in scene.things) else "no"
    found = {thing.color if words[0] == thing.shape else thing.shape
             for thing in scene.things if words[0] in (thing.color, thing.shape)}  # fmt: skip
    return found.pop() if len(found) == 1 else "unanswerable"


def question_of(line: dict[str, Any]) -> str:
    return line["text"].split("\n")[0]


def tsv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_a_second_making_gives_the_same_bytes(made: Path, files: dict[str, bytes]):
    stamp = read_json(made / STAMP)
    assert stamp["digest"] == make_benchmarks.digest(files)
    assert stamp["files"] == sorted(files)
    written = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    assert written == {*files, STAMP}
    assert all((made / name).read_bytes() == data for name, data in files.items())


def test_it_is_small(files: dict[str, bytes]):
    assert sum(map(len, files.values())) < 4_000_000


def test_scenes_are_held_out_and_not_shared_but_by_the_two_languages():
    starts = {item.folder: item.start for item in MINIATURES}
    assert starts["mmbench"] == starts.pop("mmbench_cn")
    gaps = sorted(starts.values())
    assert min(after - before for before, after in pairwise(gaps)) == 10_000
    first = [next(scenes_of(folder)).seed for folder in starts]
    assert all(seed in HELD_OUT and seed not in TRAIN and seed >= HELD_OUT[5_000_000] for seed in first)


def test_clear_scenes_name_nothing_twice():
    for scene, _ in zip(clear_scenes(0), range(20), strict=False):
        things = scene.things
        assert len({thing.color for thing in things}) == len({thing.shape for thing in things}) == len(things)
        assert len(things) >= 3 and things[-1].y - things[0].y >= 40


@pytest.mark.parametrize(
    ("questions", "images", "count"),
    [
        ("gqa/llava_gqa_testdev_balanced.jsonl", "gqa/data/images", 30),
        ("MME/llava_mme.jsonl", "MME/MME_Benchmark_release_version", 36),
        ("textvqa/llava_textvqa_val_v051_ocr.jsonl", "textvqa/train_images", 24),
        ("seed_bench/llava-seed-bench.jsonl", "seed_bench", 24),
        ("mm-vet/llava-mm-vet.jsonl", "mm-vet/images", 24),
        ("pope/llava_pope_test.jsonl", "pope/val2014", 48),
        ("vqav2/llava_vqav2_mscoco_test-dev2015.jsonl", "vqav2/test2015", 24),
        ("vqav2/llava_vqav2_mscoco_test2015.jsonl", "vqav2/test2015", 36),
        ("vizwiz/llava_test.jsonl", "vizwiz/test", 24),
        ("llava-bench-in-the-wild/questions.jsonl", "llava-bench-in-the-wild/images", 24),
    ],
)
def test_every_line_has_its_keys_and_its_image(made: Path, questions: str, images: str, count: int):
    lines = read_jsonl(made / questions, "question_id", "image", "text")
    assert len(lines) == count
    for line in lines:
        path = made / images / line["image"]
        if not path.exists():  # two categories of MME have a folder between
            path = path.parent / "images" / path.name
        assert load_image(path).size == (224, 224)


def test_gqa_counts_balanced_questions_only(made: Path):
    official = read_json(made / "gqa/data/testdev_balanced_questions.json")
    lines = read_jsonl(made / "gqa/llava_gqa_testdev_balanced.jsonl", "category")
    assert [name for name, item in official.items() if item["isBalanced"]] == [
        line["question_id"] for line in lines
    ]
    assert len(official) == len(lines) + 2
    scenes = scenes_by_image("gqa", [line["image"] for line in lines])
    for line in lines:
        item = official[line["question_id"]]
        assert line["text"] == item["question"] + SHORT_ANSWER
        assert line["image"] == item["imageId"] + ".jpg"
        assert item["answer"] == truth(item["question"], scenes[line["image"]])
        assert (item["types"]["structural"] == "verify") == (item["answer"] in ("yes", "no"))
    answers = Counter(item["answer"] for item in official.values() if item["isBalanced"])
    assert answers["yes"] == answers["no"] == 5


def test_the_picture_of_a_question_shows_its_scene(made: Path):
    lines = read_jsonl(made / "gqa/llava_gqa_testdev_balanced.jsonl")
    image, scene = next(iter(scenes_by_image("gqa", [line["image"] for line in lines]).items()))
    buffer = io.BytesIO()
    scene.render().save(buffer, format="JPEG", quality=75)
    assert (made / "gqa/data/images" / image).read_bytes() == buffer.getvalue()


def test_vqav2_has_ten_answers_and_a_larger_test(made: Path):
    folder = made / "vqav2"
    dev = read_jsonl(folder / "llava_vqav2_mscoco_test-dev2015.jsonl", "category")
    full = read_jsonl(folder / "llava_vqav2_mscoco_test2015.jsonl")
    assert full[: len(dev)] == dev and len(full) > len(dev)
    annotations = read_json(folder / "v2_mscoco_test-dev2015_annotations.json")["annotations"]
    scenes = scenes_by_image("vqav2", [line["image"] for line in dev])
    for line, item in zip(dev, annotations, strict=True):
        assert line["question_id"] == item["question_id"]
        assert line["image"] == f"COCO_test2015_{item['image_id']:012d}.jpg"
        answers = Counter(answer["answer"] for answer in item["answers"])
        expected = truth(question_of(line), scenes[line["image"]])
        assert answers[expected] == 8 and answers.total() == 10
        assert item["multiple_choice_answer"] == expected
        assert [answer["answer_id"] for answer in item["answers"]] == list(range(1, 11))
        assert item["answer_type"] == ("yes/no" if expected in ("yes", "no") else "other")
        assert item["question_type"]


def test_vizwiz_asks_for_what_is_not_there(made: Path):
    lines = read_jsonl(made / "vizwiz/llava_test.jsonl", "category")
    official = read_json(made / "vizwiz/test.json")
    scenes = scenes_by_image("vizwiz", [line["image"] for line in lines])
    for line, item in zip(lines, official, strict=True):
        assert line["image"] == item["image"]
        assert line["text"].split("\n") == [
            item["question"],
            "When the provided information is insufficient, respond with 'Unanswerable'.",
            "Answer the question using a single word or phrase.",
        ]
        expected = truth(item["question"], scenes[line["image"]])
        assert Counter(answer["answer"] for answer in item["answers"])[expected] == 8
        assert item["answerable"] == (expected != "unanswerable")
        assert {"answer_confidence", "answer"} == set(item["answers"][0])
        assert item["answer_type"] in ("other", "yes/no", "unanswerable")
    assert sum(item["answerable"] for item in official) == 18


def test_textvqa_is_joined_by_image_and_question(made: Path):
    lines = read_jsonl(made / "textvqa/llava_textvqa_val_v051_ocr.jsonl")
    official = read_json(made / "textvqa/TextVQA_0.5.1_val.json")["data"]
    answers = {(item["image_id"], item["question"].lower()): item["answers"] for item in official}
    assert len(answers) == len(lines)
    scenes = scenes_by_image("textvqa", [line["image"] for line in lines])
    for line in lines:
        question, tokens, instruction = line["text"].split("\n")
        assert line["image"] == f"{line['question_id']}.jpg"
        assert instruction == SHORT_ANSWER.strip()
        assert tokens.startswith("Reference OCR token: ")
        word = tokens.removeprefix("Reference OCR token: ")
        expected = word.lower() if "word" in question else truth(question, scenes[line["image"]])
        given = answers[line["question_id"], question.lower()]
        assert len(given) == 10 and given.count(expected) == 8
        assert word in ("", *WORDS)
    assert sum("Reference OCR token: \n" in line["text"] for line in lines) == 8


def test_a_word_is_drawn_where_it_is_asked_for(made: Path):
    lines = read_jsonl(made / "textvqa/llava_textvqa_val_v051_ocr.jsonl")
    line = next(line for line in lines if "OCR token: STOP" in line["text"])
    pixels = np.asarray(load_image(made / "textvqa/train_images" / line["image"]).convert("L"))
    # "STOP" has 25 dots of 3 pixels in a row and 7 in a column, margins included; here it is at the top left.
    dots = pixels[:21, :75].reshape(7, 3, 25, 3).mean(axis=(1, 3)) < 128
    for position, letter in enumerate("STOP"):
        rows = dots[1:6, 1 + 6 * position : 6 + 6 * position]
        assert [int("".join("01"[dot] for dot in row), 2) for row in rows.astype(int)] == list(
            LETTERS[letter]
        )


def test_pope_is_read_by_its_loader_and_half_is_there(made: Path):
    questions = pope.load(made / "pope", "")
    scenes = scenes_by_image("pope", [question.unit for question in questions])
    assert [question.target for question in questions] == [
        truth(question.text, scenes[question.unit]) for question in questions
    ]
    counts = Counter((question.group, question.unit, question.target) for question in questions)
    assert len(counts) == 3 * 4 * 2 and set(counts.values()) == {2}
    assert len({(question.group, question.unit, question.text) for question in questions}) == 48
    assert len({question.id for question in questions}) == 48
    labels = read_jsonl(made / "pope/coco/coco_pope_random.json", "question_id", "image", "text", "label")
    assert [label["question_id"] for label in labels] == list(range(1, 17))


def test_pope_names_what_is_nearly_there_only_in_one_category(made: Path):
    questions = pope.load(made / "pope", "")
    scenes = scenes_by_image("pope", [question.unit for question in questions])
    shared: dict[str, set[bool]] = {}
    for question in questions:
        if question.target == "no":
            here = {word for thing in scenes[question.unit].things for word in (thing.color, thing.shape)}
            shared.setdefault(question.group, set()).add(bool(here & set(named_words(question.text))))
    assert shared == {"adversarial": {True}, "popular": {False}, "random": {False}}


def test_mme_has_fourteen_categories_with_a_yes_and_a_no_for_every_image(made: Path):
    lines = read_jsonl(made / "MME/llava_mme.jsonl", "category")
    categories = list(dict.fromkeys(line["category"] for line in lines))
    assert categories == [
        *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork"),
        *("OCR", "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
    ]
    for first, second in zip(lines[::2], lines[1::2], strict=True):
        assert first["question_id"] == second["question_id"] == first["image"] == second["image"]
        folder = made / "MME/MME_Benchmark_release_version" / first["category"]
        if (folder / "questions_answers_YN").exists():
            assert first["category"] in ("landmark", "artwork")
            folder /= "questions_answers_YN"
        rows = (folder / f"{Path(first['image']).stem}.txt").read_text().splitlines()
        assert rows == [
            f"{question_of(line)} Please answer yes or no.\t{answer}"
            for line, answer in ((first, "Yes"), (second, "No"))
        ]


def test_mme_asks_what_its_scenes_show(made: Path):
    lines = read_jsonl(made / "MME/llava_mme.jsonl")
    scenes = scenes_by_image("MME", [line["image"] for line in lines])
    checked = 0
    for line, expected in zip(lines, ["yes", "no"] * 18, strict=True):
        scene, text = scenes[line["image"]], question_of(line)
        words = named_words(text)
        if line["category"] == "count":
            assert (f"Are there {len(scene.things)} shapes" in text) == (expected == "yes")
        elif line["category"] == "position":
            height = {thing.name: thing.y for thing in scene.things}
            above = height[" ".join(words[:2])] < height[" ".join(words[2:])]
            assert above == (expected == "yes")
        elif line["category"] != "OCR":
            assert truth(text, scene) == expected
            checked += 1
    assert checked == 36 - 4 - 4 - 2


@pytest.mark.parametrize("language", ["mmbench/mmbench_dev_20230712", "mmbench_cn/mmbench_dev_cn_20231003"])
def test_mmbench_is_a_table_with_images(made: Path, language: str):
    rows = tsv(made / f"{language}.tsv")
    assert list(rows[0]) == [
        *("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image"),
        *("source", "l2-category", "comment", "split"),
    ]
    assert len(rows) == 24 and len({row["index"] for row in rows}) == 24
    for row in rows:
        assert load_image_bytes(base64.b64decode(row["image"], validate=True)).size == (224, 224)
        options = [row[letter] for letter in "ABCD" if row[letter]]
        assert row[row["answer"]] in options and len(set(options)) == len(options)
        assert not any(row[letter] for letter in "ABCD"[len(options) :])
        assert row["split"] == "dev" and row["l2-category"]
    assert {sum(bool(row[letter]) for letter in "ABCD") for row in rows} == {2, 3, 4}
    assert Counter(bool(row["hint"]) for row in rows) == {True: 5, False: 19}
    assert len({row["answer"] for row in rows}) == 4


def test_mmbench_asks_the_same_in_both_languages(made: Path):
    english = tsv(made / "mmbench/mmbench_dev_20230712.tsv")
    chinese = tsv(made / "mmbench_cn/mmbench_dev_cn_20231003.tsv")
    for one, other in zip(english, chinese, strict=True):
        assert [one[key] for key in ("index", "image", "answer", "category")] == [
            other[key] for key in ("index", "image", "answer", "category")
        ]
        assert one["question"].isascii() and not other["question"].isascii()


def test_mmbenchs_answers_are_those_of_its_scenes(made: Path):
    for row, scene in zip(tsv(made / "mmbench/mmbench_dev_20230712.tsv"), scenes_of("mmbench"), strict=False):
        right = row[row["answer"]]
        words = named_words(row["question"])
        height = {thing.shape: thing.y for thing in scene.things}
        if row["question"].startswith("How many"):
            assert right == str(len(scene.things))
        elif row["question"].startswith("Where"):
            assert right == ("above" if height[words[0]] < height[words[1]] else "below")
        elif row["question"].startswith("Which"):
            there = {thing.name for thing in scene.things}
            named = {letter: " ".join(named_words(row[letter])) for letter in "ABCD"}
            assert [letter for letter in named if named[letter] in there] == [row["answer"]]
        else:
            assert right == truth(row["question"], scene)


def test_seed_bench_is_joined_by_number_and_has_images_and_videos(made: Path):
    lines = read_jsonl(made / "seed_bench/llava-seed-bench.jsonl")
    document = read_json(made / "seed_bench/SEED-Bench.json")
    official = {int(item["question_id"]): item for item in document["questions"]}
    assert list(official) == [line["question_id"] for line in lines]
    for line in lines:
        item = official[line["question_id"]]
        options = [f"{letter}. {item[f'choice_{letter.lower()}']}" for letter in "ABCD"]
        assert line["text"].split("\n") == [item["question"], *options, OPTION_LETTER]
        assert line["image"].startswith(f"SEED-Bench-{'video-' * (item['data_type'] == 'video')}image/")
        assert item["answer"] in "ABCD" and item["data_id"]
        assert item["question_type_id"] in document["question_type"].values()
    assert Counter(item["data_type"] for item in official.values()) == {"image": 20, "video": 4}


def test_a_third_of_scienceqa_has_no_image(made: Path):
    folder = made / "scienceqa"
    problems = read_json(folder / "problems.json")
    samples = read_json(folder / "llava_test_CQM-A.json")
    assert (
        read_json(folder / "pid_splits.json")["test"]
        == list(problems)
        == [sample["id"] for sample in samples]
    )
    assert Counter(problem["image"] for problem in problems.values()) == {"image.png": 16, None: 8}
    for sample in samples:
        problem = problems[sample["id"]]
        human, gpt = sample["conversations"]
        context, question, options, *rest = human["value"].split("\n")
        assert context == f"Context: {problem['hint'] or 'N/A'}"
        assert question == f"Question: {problem['question']}"
        assert options.startswith(f"Options: (A) {problem['choices'][0]} (B) {problem['choices'][1]}")
        assert rest == (["<image>"] if problem["image"] else [])
        assert gpt == {"from": "gpt", "value": f"The answer is {'ABCD'[problem['answer']]}."}
        assert problem["split"] == "test" and 0 <= problem["answer"] < len(problem["choices"])
        if problem["image"]:
            assert sample["image"] == f"{sample['id']}/image.png"
            assert load_image(folder / "images/test" / sample["image"]).size == (224, 224)
        else:
            assert "image" not in sample


def test_mm_vet_has_all_and_either_of(made: Path):
    lines = read_jsonl(made / "mm-vet/llava-mm-vet.jsonl")
    official = read_json(made / "mm-vet/mm-vet.json")
    assert list(official) == [f"v1_{line['question_id']}" for line in lines]
    for line, item in zip(lines, official.values(), strict=True):
        assert (item["imagename"], item["question"]) == (line["image"], line["text"])
        assert set(item["capability"]) <= {"rec", "ocr", "know", "gen", "spat", "math"} and item["capability"]
    joints = Counter(
        joint for item in official.values() for joint in ("<AND>", "<OR>") if joint in item["answer"]
    )
    assert joints == {"<AND>": 12, "<OR>": 4}


def test_llava_bench_has_a_context_and_an_answer_for_all(made: Path):
    folder = made / "llava-bench-in-the-wild"
    questions = read_jsonl(folder / "questions.jsonl", "category")
    contexts = {line["image"]: line["caption"] for line in read_jsonl(folder / "context.jsonl")}
    answers = read_jsonl(folder / "answers_gpt4.jsonl", "question_id", "text", "answer_id", "model_id")
    assert [answer["question_id"] for answer in answers] == [line["question_id"] for line in questions]
    assert Counter(line["category"] for line in questions) == {"conv": 8, "detail": 8, "complex": 8}
    for image, scene in scenes_by_image(folder.name, [line["image"] for line in questions]).items():
        assert all(thing.name in contexts[image] for thing in scene.things)


def test_qbenchs_right_answer_is_a_candidate(made: Path):
    items = read_json(made / "qbench/llvisionqa_dev.json")
    assert Counter((item["type"], item["concern"]) for item in items) == {(0, 0): 8, (1, 3): 8, (2, 1): 8}
    brightness: dict[str, list[float]] = {"Very dark": [], "Very bright": []}
    for item, scene in zip(items, scenes_of("qbench"), strict=False):
        assert item["candidates"].count(item["correct_ans"]) == 1
        picture = load_image(made / "qbench/images_llvisionqa" / item["img_path"])
        if item["type"] == 0:
            # A blur of 11 pixels leaves at most 1/11 of 255 between neighbors; a sharp edge has far more.
            steps = np.abs(np.diff(np.asarray(picture).astype(int), axis=1))
            assert (steps.max() < 40) == (item["correct_ans"] == "Yes")
        if item["type"] == 1:
            assert item["correct_ans"] == truth(item["question"], scene)
        if item["type"] == 2:
            brightness[item["correct_ans"]].append(float(np.asarray(picture).mean()))
    assert max(brightness["Very dark"]) < 64 and min(brightness["Very bright"]) > 190
    assert {item["correct_ans"] for item in items if item["type"] == 0} == {"Yes", "No"}


def test_what_is_there_stays_with_the_answers_beside_it(made: Path, capsys):
    answers = made / "pope/answers/run.jsonl"
    answers.parent.mkdir(exist_ok=True)
    answers.write_text("{}\n")
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()}
    assert make_benchmarks.main(["--output", str(made)]) == 0
    assert "13 benchmarks" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*") if path.is_file()} == before
    answers.unlink()
    answers.parent.rmdir()


def test_a_damaged_file_is_made_again(made: Path):
    stamp = (made / STAMP).read_text()
    whole, missing = made / "gqa/llava_gqa_testdev_balanced.jsonl", made / "vizwiz/test.json"
    content = whole.read_bytes()
    whole.write_bytes(content[:100])
    missing.unlink()
    make(made)
    assert whole.read_bytes() == content and missing.exists()
    assert (made / STAMP).read_text() == stamp


def test_an_interrupted_making_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Path):
    written: list[Path] = []

    def writing_until_interrupted(path: Path) -> Any:
        written.append(path)
        if len(written) == 50:
            raise KeyboardInterrupt
        return writing(path)

    with monkeypatch.context() as patch:
        patch.setattr(make_benchmarks, "writing", writing_until_interrupted)
        assert make_benchmarks.main(["--output", str(tmp_path)]) == 130
    assert (tmp_path / UNFINISHED).exists() and not (tmp_path / STAMP).exists()
    make(tmp_path)
    assert (tmp_path / STAMP).read_text() == (made / STAMP).read_text()
    assert not list(tmp_path.rglob("*.unfinished"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("photo.jpg", "", "holds files, but no miniatures"),
        (STAMP, json.dumps({"made_by": "x", "version": 1, "digest": "", "files": []}), "was made by 'x'"),
        (STAMP, json.dumps({"made_by": make_benchmarks.MADE_BY, "version": 0, "digest": "", "files": []}),
         "of version 0, and this command makes version"),
        (STAMP, "[", "is not JSON"),
        (STAMP, "{}", "lacks 'made_by'"),
    ],
)  # fmt: skip
def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys, name: str, content: str, message: str):
    (tmp_path / name).write_text(content)
    assert make_benchmarks.main(["--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == content


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path: Path, capsys):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert make_benchmarks.main(["--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and str(tmp_path / "file") in error
