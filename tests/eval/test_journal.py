"""Answers are kept one by one; what was cut short is asked again, what was made otherwise is moved aside."""

import json
import logging

import pytest

from llava.errors import UserError
from llava.eval.journal import Entry, Journal
from llava.messages import Cost

COST = Cost(
    patches=256, visual_tokens=30, new_tokens=2, vision_ms=1, reduction_ms=2, prefill_ms=3, decode_ms=4
)
QUESTIONS = [f"q{number}" for number in range(4)]
SETTINGS = {"reduction": "TRIM:-1", "generation": {"stop": ()}}


@pytest.fixture
def answers_file(tmp_path):
    return tmp_path / "answers" / "run.jsonl"


def opened(answers_file, settings=SETTINGS):
    journal = Journal.beside(answers_file)
    journal.folder.mkdir(parents=True, exist_ok=True)
    journal.open(settings, answers_file)
    return journal


def write(journal, *entries, rank=0):
    with journal.writer(rank) as writer:
        for entry in entries:
            writer.append(entry)


def test_entries_are_read_as_they_were_written(answers_file):
    journal = opened(answers_file)
    entries = [Entry(0, "q0", "a\nb\u2028", cost=COST), Entry(3, "q3", "", error="no image")]
    write(journal, *entries)
    assert journal.read(QUESTIONS) == {0: entries[0], 3: entries[1]}


def test_a_question_that_failed_twice_has_its_last_error_and_an_answer_stays(answers_file):
    journal = opened(answers_file)
    write(journal, Entry(0, "q0", "", error="no file"), Entry(1, "q1", "a"))
    write(journal, Entry(0, "q0", "", error="a damaged file"), Entry(1, "q1", "", error="no memory"), rank=1)
    assert journal.read(QUESTIONS)[0].error == "a damaged file"
    assert journal.read(QUESTIONS)[1].error is None


def test_a_line_that_was_cut_short_is_as_if_it_had_not_been_written(answers_file):
    journal = opened(answers_file)
    write(journal, Entry(0, "q0", "a"), Entry(1, "q1", "b"))
    path = journal.folder / "rank-0.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert journal.read(QUESTIONS) == {0: Entry(0, "q0", "a")}
    write(journal, Entry(1, "q1", "b again"))
    assert journal.read(QUESTIONS) == {0: Entry(0, "q0", "a"), 1: Entry(1, "q1", "b again")}
    assert len(path.read_text().splitlines()) == 2


def test_a_damaged_line_is_said_and_asked_again(answers_file, caplog):
    journal = opened(answers_file)
    write(journal, Entry(0, "q0", "a"), Entry(1, "q1", "b"))
    path = journal.folder / "rank-0.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"index": 0', b"\0\0\0\0\0\0\0\0\0\0\0"))
    assert journal.read(QUESTIONS) == {1: Entry(1, "q1", "b")}
    assert "rank-0.jsonl, line 1 is damaged" in caplog.text


def test_all_processes_are_read_and_an_answer_counts_more_than_a_failure(answers_file):
    journal = opened(answers_file)
    write(journal, Entry(0, "q0", "", error="no image"), Entry(1, "q1", "b"))
    write(journal, Entry(0, "q0", "a"), Entry(1, "q1", "", error="later"), rank=1)
    assert journal.read(QUESTIONS) == {0: Entry(0, "q0", "a"), 1: Entry(1, "q1", "b")}


def test_the_same_settings_go_on(answers_file):
    write(opened(answers_file), Entry(0, "q0", "a"))
    assert opened(answers_file).read(QUESTIONS) == {0: Entry(0, "q0", "a")}


def test_answers_of_other_settings_are_moved_aside_and_said(answers_file, caplog):
    write(opened(answers_file), Entry(0, "q0", "a"))
    answers_file.write_text("old\n")
    with caplog.at_level(logging.WARNING):
        journal = opened(answers_file, {**SETTINGS, "reduction": "none"})
    assert journal.read(QUESTIONS) == {}
    assert "made with other settings (reduction) and begins anew" in caplog.text
    assert answers_file.with_name("run.jsonl.1").read_text() == "old\n"
    assert json.loads((journal.folder / "settings.json.1").read_text())["reduction"] == "TRIM:-1"
    assert (journal.folder / "rank-0.jsonl.1").exists()
    opened(answers_file)  # and once more, without overwriting what is aside
    assert (journal.folder / "settings.json.2").exists()


def test_answers_that_somebody_else_wrote_are_kept(answers_file):
    answers_file.parent.mkdir()
    answers_file.write_text("theirs\n")
    opened(answers_file)
    assert answers_file.with_name("run.jsonl.1").read_text() == "theirs\n"


def test_two_runs_do_not_write_to_one_journal(answers_file, monkeypatch):
    monkeypatch.setattr("llava.eval.journal.LOCK_PATIENCE_S", 0.1)
    journal = Journal.beside(answers_file)
    with (
        journal.lock("--id"),
        pytest.raises(UserError, match="another run is writing to the folder .*another --id"),
        journal.lock("--id"),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "answers").write_text("a file")
    with (
        pytest.raises(UserError, match="cannot be written"),
        Journal.beside(tmp_path / "answers" / "a").lock("--id"),
    ):
        pass
