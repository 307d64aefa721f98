"""Files of benchmarks: mistakes are named by file, line and key; what is written is whole or not there."""

import errno

import pytest

from llava.errors import MissingFileError, UserError
from llava.eval.files import (
    move_aside,
    read_json,
    read_jsonl,
    read_objects,
    require_keys,
    write_text,
    writing,
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"text": "a"}\n{"text": 5}\n', "line 2: 'text' is 5; expected a text"),
        ('{"text": null}\n', "line 1: 'text' is None; expected a text"),
        ('{"text": ["a"]}\n', r"line 1: 'text' is \['a'\]; expected a text"),
        ("\n\n[]\n", r"line 3 is \[\]; expected a JSON object"),
        ('{"text": "a"', "line 1 is not JSON"),
        ("[" * 100_000 + "\n", "line 1 is not JSON"),
        ('{"text": "\\ud800"}\n', "line 1 is not JSON: .*surrogates not allowed"),
        ('{"other": 1}\n', "line 1 lacks 'text'; it has 'other'"),
    ],
)
def test_a_bad_line_is_named(text, message, tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_jsonl(path, "text")


def test_ids_are_texts_or_numbers_and_nothing_else(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"question_id": "a"}\n{"question_id": 1}\n')
    assert len(read_jsonl(path, "question_id")) == 2
    path.write_text('{"question_id": true}\n')
    with pytest.raises(UserError, match="'question_id' is True; expected a text or a whole number"):
        read_jsonl(path, "question_id")


def test_line_separators_within_texts_end_no_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert read_jsonl(path, "text") == [{"text": "a\u2028b"}]


@pytest.mark.parametrize("text", ["5", '{"a": 1}', "null"])
def test_what_is_no_list_is_refused(text, tmp_path):
    (tmp_path / "items.json").write_text(text)
    with pytest.raises(UserError, match=r"items.json is .*; expected a JSON list"):
        read_objects(tmp_path / "items.json", "id")


def test_what_is_no_text_or_not_there_is_said(tmp_path):
    (tmp_path / "latin.json").write_bytes(b'"\xe9"')
    with pytest.raises(UserError, match="latin.json is not UTF-8 text"):
        read_json(tmp_path / "latin.json")
    with pytest.raises(MissingFileError, match="there is no file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_a_file_that_is_not_finished_does_not_get_its_name(tmp_path):
    path = write_text(tmp_path / "new" / "a.txt", "old")
    with pytest.raises(RuntimeError), writing(path) as unfinished:
        unfinished.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"


def test_what_is_moved_aside_gets_one_number_together(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for _ in range(2):
        first.write_text("")
        second.write_text("")
        move_aside(first, second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.1", "a.2", "b.1", "b.2"]


@pytest.mark.parametrize(
    ("item", "keys", "sentence"),
    [
        ({"image": ["a"]}, ("image?",), "x: 'image' is ['a']; expected a text"),
        ({"answers": 5}, ("answers",), "x: 'answers' is 5; expected a list"),
        ({"answers": ["a", None]}, ("answers",), "x: 'answers' has None as item 1; expected a text"),
        ({"tuple": [1, float("nan")]}, ("tuple",), "x: 'tuple' has nan as item 1; expected a number"),
        (
            {"question_id": True},
            ("question_id",),
            "x: 'question_id' is True; expected a text or a whole number",
        ),
        ({"image": "a"}, ("image?", "text"), "x lacks 'text'; it has 'image'"),
    ],
)
def test_what_keys_hold_is_checked_and_said(item, keys, sentence):
    with pytest.raises(UserError) as caught:
        require_keys(item, keys, "x")
    assert str(caught.value) == sentence


def test_optional_keys_may_be_missing_or_null():
    for item in ({}, {"image": None}, {"image": "a"}):
        assert require_keys(item, ("image?",), "x") is item


def test_a_file_that_could_not_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="No space left"), writing(tmp_path / "a") as unfinished:
        unfinished.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
