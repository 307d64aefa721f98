"""The check before training: what it counts, what it finds, and that its verdict is training's."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from PIL import Image

from llava.constants import IGNORE_INDEX
from llava.conversation import conv_templates
from llava.data.check_data import main, map_in_parallel
from llava.data.data_report import histogram
from llava.data.text_lengths import Measure, make_ruler
from llava.train.arguments import DataArguments
from llava.train.collator import DataCollatorForSupervisedDataset
from llava.train.data import encode_record

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP = GOLDEN / "clip-vit-tiny-patch14-336"
LLAVA = GOLDEN / "llava-v1.5-tiny"
PATCHES = 576


def record(*texts: str, image: str | None = None, **others: Any) -> dict[str, Any]:
    """A record of the texts, said in turns."""
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(texts)]
    return {"conversations": turns, **({} if image is None else {"image": image}), **others}


GOOD = record("<image>\nWhat is it?", "A cat.", "Is it red?", "No.", image="0.png", id="good")
TEXT = record("Tell a joke.", "No.", id="text")


@pytest.fixture
def images(data: Path, tmp_path: Path) -> Path:
    """The shared pictures, and damaged ones."""
    folder = tmp_path / "images"
    shutil.copytree(data, folder)
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:60])
    (folder / "text.png").write_text("hello")
    return folder


Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def check(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command on some records; returns its exit code and the lines it printed."""

    def run(records: list[Any], *arguments: str) -> tuple[int, list[str]]:
        (tmp_path / "data.json").write_text(json.dumps(records))
        paths = ["--data_path", str(tmp_path / "data.json"), "--image_folder", str(images)]
        code = main([*paths, "--workers", "1", *arguments])
        output = capsys.readouterr()
        assert output.err == ""
        return code, output.out.splitlines()

    return run


def test_good_data_would_train(check: Check):
    code, lines = check([GOOD, TEXT, {**GOOD, "id": "again"}])
    assert code == 0
    assert lines[-1] == "training would run"
    assert [line.split() for line in lines[:5]] == [
        ["records", "3"],
        ["with", "an", "image", "2"],
        ["text", "only", "1"],
        ["different", "images", "1"],
        ["turns", "10"],
    ]
    assert "Questions longer than CLIP reads: not checked (give --vision_tower)" in lines


BAD = [
    GOOD,
    record("Q", "A", "Q"),
    {"id": "alternate", "conversations": [GOOD["conversations"][0]] * 2},
    {"id": "none"},
    record("<image> Q", "A", "<image> Q", "A", image="0.png"),
    record("<image> Q", "A", image="../0.png"),
    record("<image> Q", "A", image="gone.png"),
    record("<image> Q", "A", image="cut.png"),
    record("<image> Q", "A", image="text.png"),
    record("<image> Q", "A", image="cut.png", id="too"),
]


def test_all_that_is_wrong_is_listed_and_counted(check: Check):
    code, lines = check(BAD)
    assert code == 1
    assert lines[-1] == "training would fail: 4 wrong records, 1 missing image, 3 broken images"
    listed = [line for line in lines if line.startswith("  record ")]
    assert [line.split(":")[0].strip() for line in listed] == [
        *["record 2 (id 'alternate')", "record 3 (id 'none')", "record 4", "record 5"],
        *["record 6", "record 7", "record 8", "record 9 (id 'too')"],
    ]
    assert "turn 1 is from 'human'" in listed[0]
    assert "gone.png" in listed[4] and "truncated or damaged" in listed[5] and "not an image" in listed[6]


def test_absolute_paths_and_turns_that_are_left_out_are_judged_as_by_training(check: Check, images: Path):
    inside = record("<image> Q", "A", image=str(images / "0.png"))
    greeting = {"from": "gpt", "value": "<image> Hello."}
    greeted = {**TEXT, "image": "0.png", "conversations": [greeting, *TEXT["conversations"]]}
    assert check([inside])[1][-1] == "training would run"
    code, lines = check([inside, greeted, record("<image> Q", "A", image=str(images.parent / "0.png"))])
    assert (code, lines[-1]) == (1, "training would fail: 2 wrong records")
    assert "<image> stands in a first turn of 'gpt' alone" in "".join(lines)


def test_bad_images_are_no_failure_if_they_are_skipped(check: Check):
    images = [GOOD, *BAD[6:]]
    code, lines = check(images, "--on_bad", "skip")
    assert (code, lines[-1]) == (
        0,
        "training would run, without the records of 1 missing image, 3 broken images",
    )
    code, lines = check([*images, BAD[2]], "--on_bad_image", "skip")
    assert (code, lines[-1]) == (1, "training would fail: 1 wrong record")
    code, lines = check([*images[1:], TEXT], "--on_bad_image", "skip")
    assert code == 1
    assert lines[-1].startswith(
        "training would fail: no image is left to train on: 1 missing image, 3 broken"
    )


def test_without_opening_images_damage_is_not_seen_and_that_is_said(check: Check):
    code, lines = check([GOOD, *BAD[7:]], "--fast")
    assert (code, lines[-1]) == (0, "training would run; no image was opened (--fast)")
    code, lines = check(BAD[6:], "--fast")
    assert (code, lines[-1]) == (1, "training would fail: 1 missing image")


def test_many_bad_images_are_listed_in_full_only_when_asked_for(check: Check, tmp_path: Path):
    records = [GOOD] + [record("<image> Q", "A", image=f"gone{number}.png") for number in range(25)]
    _, lines = check(records)
    assert sum("gone" in line for line in lines) == 10
    assert "  ... and 15 more (--all lists them, --report FILE writes them)" in lines
    _, lines = check(records, "--all")
    assert sum("gone" in line for line in lines) == 25
    check([*records, *BAD], "--report", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["would_train"] is False
    assert report["counts"]["records"] == 36
    faults = [problem["fault"] for problem in report["problems"]]
    assert [faults.count(fault) for fault in ("wrong record", "missing image", "broken image")] == [4, 26, 3]
    assert [problem["index"] for problem in report["problems"]] == sorted(
        problem["index"] for problem in report["problems"]
    )


def test_odd_records_are_named_but_train(check: Check):
    odd = [
        record("What is <image>?", "A tag.", id="a"),
        record("What is it?", "A cat.", image="0.png", id="b"),
        record("Show me a cat.", "<image> There.", image="0.png", id="a"),
        {"id": "c", "conversations": [{"from": "gpt", "value": "A cat."}]},
    ]
    code, lines = check(odd)
    assert code == 0
    assert "<image> without an image, read as text: 1 record (record 0 (id 'a'))" in lines
    assert "Image shown by no turn (no <image>), so never seen: 1 record (record 1 (id 'b'))" in lines
    assert "<image> inside an answer: 1 record (record 2 (id 'a'))" in lines
    assert "Same id as an earlier record: 1 record (record 2 (id 'a'))" in lines
    assert "No turn of 'human', so nothing to learn: 1 record (record 3 (id 'c'))" in lines


def test_lengths_are_those_of_training(loaded):
    """A sample learns something if the spliced and cut labels of training hold something."""
    tokenizer, model, *_ = loaded
    rng = random.Random(0)
    template, data_args = conv_templates["v1"], DataArguments(is_multimodal=True)
    collate = DataCollatorForSupervisedDataset(tokenizer, torch.zeros(3, 336, 336))
    for image in [None, "0.png"] * 4:
        shown = "" if image is None else "<image>\n"
        example = record(shown + "why " * rng.randint(1, 300), "So. " * rng.randint(1, 50), image=image)
        sample = encode_record(example, tokenizer, data_args, template)
        seen = {"image": torch.zeros(3, 336, 336), "image_size": (336, 336)}
        batch = collate([sample if image is None else {**sample, **seen}])
        with torch.no_grad():
            *_, labels = model.prepare_inputs_labels_for_multimodal(
                batch["input_ids"], None, None, None, batch["labels"], batch["images"]
            )
        first = int((labels[0] != IGNORE_INDEX).nonzero()[0])
        for limit, learns in [(first, False), (first + 1, True)]:
            ruler = make_ruler(template, limit, data_args, str(LLAVA), str(CLIP))
            assert ruler.measure(example) == Measure(labels.shape[1], learns, int(image is not None), ANY)


def test_cut_samples_and_those_that_learn_nothing_are_counted(check: Check):
    records = [
        GOOD,
        TEXT,
        record("<image>\n" + "word " * 3000, "Late.", image="0.png", id="late"),
        record("Q", "", id="silent"),
    ]
    code, lines = check(records, "--model_name", str(LLAVA), "--vision_tower", str(CLIP))
    assert code == 0
    assert f"Length in tokens (of text, and {PATCHES} per image, as without token reduction)" in lines
    assert "Longer than 2,048 tokens (--model_max_length), so cut: 1 record" in lines
    assert (
        "No answer within that length, so nothing to learn: "
        "2 records (record 2 (id 'late'), record 3 (id 'silent'))"
    ) in lines
    assert "Questions longer than CLIP's 77 tokens: 1 of 3" in lines
    _, lines = check(records)
    assert "Length in words (of the turns; --model_name_or_path counts tokens)" in lines
    assert "No answer, so nothing to learn: 1 record (record 3 (id 'silent'))" in lines


def test_data_that_teach_nothing_would_fail(check: Check):
    code, lines = check([record("What is it?", ""), record("Hello?", "")])
    assert (code, lines[-1]) == (1, "training would fail: there is nothing to learn in any record")
    cut = ["--model_max_length", "20", "--model_name_or_path", str(LLAVA)]
    code, lines = check([TEXT], *cut)
    assert (code, lines[-1]) == (1, "training would fail: there is nothing to learn in any record")
    silent = record("<image>\nWhat is it?", "", image="0.png")
    code, lines = check([{**GOOD, "image": "cut.png"}, silent], "--on_bad_image", "skip")
    assert code == 1 and "once those of 1 broken image are left out" in lines[-1]


def test_captions_are_what_clip_reads_in_pretraining(check: Check):
    captions = [record("<image>", text, image="0.png") for text in ("A cat.", "a " * 100)]
    _, lines = check(captions, "--version", "plain", "--vision_tower", str(CLIP))
    assert "Captions longer than CLIP's 77 tokens: 1 of 2" in lines


def test_without_clips_tokenizer_questions_are_not_checked(check: Check, tmp_path: Path):
    half = tmp_path / "clip"
    shutil.copytree(CLIP, half, ignore=shutil.ignore_patterns("tokenizer.json", "vocab.json"))
    _, lines = check([GOOD], "--vision_tower", str(half))
    assert "Questions longer than CLIP reads: not checked (the CLIP folder has no tokenizer)" in lines


def test_the_clip_of_a_llava_checkpoint_is_found(check: Check):
    _, lines = check([GOOD], "--model_name_or_path", str(LLAVA))
    assert f"Length in tokens (of text, and {PATCHES} per image, as without token reduction)" in lines


def test_text_alone_needs_no_folder_and_a_base_no_clip(check: Check, language_model: Path):
    code, lines = check([TEXT], "--model_name_or_path", str(language_model))
    assert code == 0
    assert "Length in tokens (of text only; --vision_tower counts visual tokens too)" in lines


def test_bars_are_written_out():
    rows = [("1-256", 1000), ("257-512", 500), ("513-768", 0), ("over 2,048", 1)]
    assert list(histogram(rows)) == [
        "          1-256  ########################################     1,000   66.6%",
        "        257-512  ####################                           500   33.3%",
        "        513-768                                                   0    0.0%",
        "     over 2,048  #                                                1    0.1%",
    ]
    assert list(histogram([])) == []


def test_records_are_sorted_into_rows_by_their_turns_and_length(check: Check, tmp_path: Path):
    exchanges = [record(*["one", "two"] * count) for count in (1, 2, 2, 3, 16, 17)]
    limits = ("--model_max_length", "16", "--report", str(tmp_path / "report.json"))
    check([record("one"), *exchanges], *limits)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["turns"] == {"1": 1, "2": 1, "3-4": 2, "5-8": 1, "9-16": 0, "17-32": 1, "33-64": 1}
    assert report["lengths"] == {
        **{"1-2": 2, "3-4": 2, "5-6": 1, "7-8": 0, "9-10": 0, "11-12": 0, "13-14": 0, "15-16": 0},
        "over 16": 2,
    }


def test_workers_give_the_same_results_in_order():
    items = list(range(200))
    assert list(map_in_parallel(str, items, 2, "numbers")) == [str(item) for item in items]
    assert list(map_in_parallel(str, [], 2, "nothing")) == []


def test_an_image_is_decoded_once_for_all_its_records(check: Check, monkeypatch: pytest.MonkeyPatch):
    opened: list[Any] = []
    decode = Image.open

    def count(file: Any, **options: Any) -> Any:
        opened.append(file)
        return decode(file, **options)

    monkeypatch.setattr(Image, "open", count)
    check([GOOD] * 5)
    assert len(opened) == 1


@pytest.mark.parametrize("text", ['{"id": 1}', "[1, 2", "[]"])
def test_a_file_that_is_no_list_of_records_would_fail_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
):
    (tmp_path / "data.json").write_text(text)
    assert main(["--data_path", str(tmp_path / "data.json")]) == 1
    assert capsys.readouterr().out.startswith("training would fail: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--data_path"),
        (["--data_path", "nowhere.json"], "no data file 'nowhere.json'"),
        (["--data_path", "turns.json"], "so --image_folder is needed"),
        (["--data_path", "turns.json", "--image_folder", "nowhere"], "no image folder 'nowhere'"),
        (["--data_path", "turns.json", "--version", "v9"], "--version 'v9' does not exist"),
        (["--data_path", "turns.json", "--vision_tower", "./nowhere"], "nowhere"),
        (["--data_path", "turns.json", "--model_name_or_path", "./nowhere"], "nowhere"),
        (["--data_path", "turns.json", "--report", "nowhere/report.json"], "nowhere/report.json"),
        (["--data_path", "turns.json", "--model_max_length", "0"], "--model_max_length"),
        (["--data_path", "turns.json", "--on_bad_image", "maybe"], "'maybe'"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
):
    monkeypatch.chdir(data)
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert sentence in output.err
