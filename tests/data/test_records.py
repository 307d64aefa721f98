"""Data files that cannot be trained on are refused by name, before anything is loaded."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava.conversation import conv_templates
from llava.data.records import (
    Fault,
    check_records,
    find_problems,
    image_path,
    name_record,
    read_records,
)
from llava.errors import MissingFileError, UserError

TEXT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
TURNS = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]


def test_a_good_record_passes(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").touch()
    (tmp_path / "data.json").write_text(json.dumps([{"id": 1, "image": "a/b.jpg", "conversations": TURNS}]))
    records = read_records(tmp_path / "data.json")
    check_records(records, tmp_path, conv_templates["v1"])
    check_records(records, tmp_path, conv_templates["plain"])
    assert image_path(records[0], tmp_path) == tmp_path / "a" / "b.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds a JSON dict"),
        ("[]", "an empty list"),
        ('{"a": 1}\n{"a": 2}\n', "is not JSON"),
        ("\x00", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_records(tmp_path / "data.json")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match="nothing"):
        read_records(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "no 'conversations'"),
        ({}, "no 'conversations'"),
        ({"conversations": []}, "no 'conversations'"),
        ({"conversations": [{"from": "human"}]}, "'value', a text"),
        ({"conversations": [{"from": "human", "value": 3}]}, "'value', a text"),
        ({"conversations": [TURNS[0], TURNS[0]]}, "turn 1 is from 'human'"),
        ({"conversations": [{"from": "system", "value": "x"}]}, "turn 0 is from 'system'"),
        ({"conversations": TURNS * 2, "image": "a.png"}, "stands in 2 turns"),
        ({"conversations": TURNS, "image": "../a.png"}, "leads out of the image folder"),
        ({"conversations": TURNS, "image": "a/../../b.png"}, "leads out of the image folder"),
        ({"conversations": TURNS, "image": "/etc/a.png"}, "leads out of the image folder"),
        (
            {"conversations": [{"from": "gpt", "value": "<image>"}, *TEXT], "image": "a.png"},
            "<image> stands in a first turn of 'gpt' alone, which is left out; expected in a turn of ",
        ),
        ({"conversations": TURNS, "image": ["a.png"]}, "path of one image"),
        ({"conversations": TURNS, "image": "\ud800.png"}, "path of one image"),
        (
            {"conversations": [{"from": "human", "value": "\ud83d"}]},
            "'.ud83d', which is no character",
        ),
    ],
)
def test_bad_records_are_named(record: Any, message: str):
    good = {"id": "good", "conversations": TURNS}
    with pytest.raises(UserError, match=f"record 1.*{message}"):
        check_records([good, record], "images", conv_templates["v1"])


def test_images_need_a_folder():
    with pytest.raises(UserError, match=r"record 0 \(id 'x'\).*--image_folder"):
        check_records([{"id": "x", "image": "a.png", "conversations": TURNS}], None, conv_templates["v1"])


def test_pretraining_needs_an_image_in_every_record():
    with pytest.raises(UserError, match="no 'image'"):
        check_records([{"conversations": TURNS}], "images", conv_templates["plain"])


def with_image(name: str) -> dict[str, Any]:
    return {"image": name, "conversations": TURNS}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with an image, a link to it, a dangling link, and a folder that is called like an image."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nothing.jpg")
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "folder.jpg/../a.jpg", "link.jpg"])
def test_images_that_are_there_are_found(images: Path, name: str):
    check_records([with_image(name)], images, conv_templates["v1"])


@pytest.mark.parametrize("folder", [".", "images", "link", "/", "ABSOLUTE"])
def test_absolute_paths_below_the_folder_are_found(folder: str, tmp_path: Path, monkeypatch):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path)
    image_folder = folder.replace("ABSOLUTE", str(tmp_path))
    name = str(tmp_path / "images" / "a.jpg")
    check_records([with_image(name)], image_folder, conv_templates["v1"])
    assert image_path(with_image(name), image_folder) == Path(name)


def test_absolute_paths_elsewhere_lead_out(tmp_path: Path):
    for name in ("images-of-others/a.jpg", "images/../a.jpg"):
        with pytest.raises(UserError, match="leads out of the image folder"):
            image_path(with_image(f"{tmp_path}/{name}"), tmp_path / "images")


def test_an_image_of_a_turn_that_is_left_out_may_stand_elsewhere_too():
    greeting = {"from": "gpt", "value": "<image>"}
    assert not list(
        find_problems([{"conversations": [greeting, *TURNS], "id": 1}], None, conv_templates["v1"])
    )
    both = {"conversations": [greeting, *TURNS], "image": "a.png"}
    with pytest.raises(MissingFileError):  # of the image alone
        check_records([both], "images", conv_templates["v1"])


@pytest.mark.parametrize(
    "name", ["b.jpg", "dangling.jpg", "folder.jpg", "nowhere/a.jpg", "a.jpg/b.jpg", ".", "\x00", "x" * 300]
)
def test_a_missing_image_is_named_before_training(images: Path, name: str):
    with pytest.raises(MissingFileError, match="^record 1: there is no image file '"):
        check_records([with_image("a.jpg"), with_image(name)], images, conv_templates["v1"])


def test_a_folder_is_listed_once_however_many_images_it_has(images: Path, monkeypatch: pytest.MonkeyPatch):
    listed: list[str] = []
    scandir = os.scandir

    def listing(folder: str) -> Any:
        listed.append(folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", listing)
    records = [with_image(name) for name in ["a.jpg", "b.jpg", "nowhere/a.jpg", "nowhere/b.jpg"] * 3]
    problems = list(find_problems(records, images, conv_templates["v1"]))
    assert len(problems) == 9
    assert listed == [str(images), str(images / "nowhere")]


def test_images_of_a_folder_that_may_not_be_listed_are_found(images: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(folder: str) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    problems = find_problems([with_image("a.jpg"), with_image("b.jpg")], images, conv_templates["v1"])
    assert [problem.index for problem in problems] == [1]


def test_the_first_bad_record_is_named_and_the_others_are_counted(images: Path):
    records = [{}, with_image("a.jpg"), with_image("b.jpg"), {"id": "x"}]
    with pytest.raises(UserError, match=r"^record 0: .*'conversations'.* \(and 2 more; .*check_data"):
        check_records(records, images, conv_templates["v1"])
    faults = [problem.fault for problem in find_problems(records, images, conv_templates["v1"])]
    assert faults == [Fault.RECORD, Fault.MISSING, Fault.RECORD]


def test_missing_images_can_be_skipped_with_a_warning(images: Path, caplog: pytest.LogCaptureFixture):
    records = [with_image("b.jpg"), with_image("a.jpg"), with_image("c.jpg")]
    check_records(records, images, conv_templates["v1"], on_bad_image="skip")
    (warning,) = [record.message for record in caplog.records]
    assert warning.startswith("records left out because their images are missing: 2; the first: record 0: ")


def test_images_that_no_turn_shows_are_said_before_training(images: Path, caplog: pytest.LogCaptureFixture):
    asked = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    shown = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    records = [
        {"image": "a.jpg", "conversations": shown},
        {"id": "x", "image": "a.jpg", "conversations": asked},
        {"image": "missing.jpg", "conversations": asked},
        {"image": "a.jpg", "conversations": asked},
        {"conversations": shown},
        {"conversations": asked},
    ]
    check_records(records, images, conv_templates["v1"], on_bad_image="skip")
    left_out, *warnings = [record.message for record in caplog.records]
    assert left_out.startswith("records left out because their images are missing: 1;")
    assert warnings == [
        "Image shown by no turn (no <image>), so never seen: 2 of 6 records; the first: record 1 (id 'x')",
        "<image> without an image, read as text: 1 of 6 records; the first: record 4",
    ]


@pytest.mark.parametrize("template", ["v1", "v0", "mpt"])
def test_a_record_of_an_answer_alone_is_trained_on_and_said(template, images, caplog):
    """Published LLaVA leaves its only turn out too, and goes on with what is left, the system prompt."""
    records = [{"conversations": TEXT}, {"id": "x", "conversations": [TEXT[1]]}]
    check_records(records, images, conv_templates[template])
    assert caplog.messages == [
        "No turn of 'human', so nothing to learn: 1 of 2 records; the first: record 1 (id 'x')"
    ]


@pytest.mark.parametrize(
    ("template", "message"), [("llava_llama_2", "no turn of 'human'"), ("plain", "two t")]
)
def test_what_is_left_of_an_answer_alone_is_a_prompt_or_refused(template, message, images):
    with pytest.raises(UserError, match=message):
        check_records([{"conversations": [TURNS[1]], "image": "a.jpg"}], images, conv_templates[template])


def test_wrong_records_cannot_be_skipped(images: Path):
    records = [with_image("b.jpg"), with_image("a.jpg"), with_image("../a.jpg")]
    with pytest.raises(UserError, match=r"^record 2: .* leads out of the image folder .*'$"):
        check_records(records, images, conv_templates["v1"], on_bad_image="skip")


def test_images_that_are_all_missing_are_not_skipped(images: Path):
    """Most likely --image_folder is wrong, and hours of training would teach nothing about images."""
    records = [with_image("b.jpg"), with_image("c.jpg"), {"conversations": TURNS}]
    with pytest.raises(MissingFileError, match="^no image is left to train on: record 0: .*and 1 more"):
        check_records(records, images, conv_templates["v1"], on_bad_image="skip")


def test_an_endless_id_is_shortened():
    assert len(name_record({"id": "x" * 1000}, 3)) < 110


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path):
    path = tmp_path / "data.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([{"id": "1"}]).encode())
    assert read_records(path) == [{"id": "1"}]
