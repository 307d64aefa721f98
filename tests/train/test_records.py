"""Data files that cannot be trained on are refused by name, before anything is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from llava.conversation import conv_templates
from llava.errors import MissingFileError, UserError
from llava.train.records import check_records, image_path, read_records

TURNS = [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]


def test_a_good_record_passes(tmp_path: Path):
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
        ({"conversations": [TURNS[1]]}, "no turn of 'human'"),
        ({"conversations": TURNS * 2, "image": "a.png"}, "stands in 2 turns"),
        ({"conversations": TURNS, "image": "../a.png"}, "leads out of the image folder"),
        ({"conversations": TURNS, "image": "a/../../b.png"}, "leads out of the image folder"),
        ({"conversations": TURNS, "image": "/etc/a.png"}, "leads out of the image folder"),
        ({"conversations": TURNS, "image": ["a.png"]}, "path of one image"),
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
