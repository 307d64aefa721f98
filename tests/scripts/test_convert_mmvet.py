"""Answers of MM-Vet for its own scorer."""

import json

import pytest

from llava.eval.benchmark import Question, Response
from llava.eval.benchmarks.mmvet import export
from scripts.convert_mmvet_for_eval import main

ANSWERS = {0: "x = -1", 7: "Ein Schild: „Halt“"}


@pytest.fixture
def answers(tmp_path):
    path = tmp_path / "answers.jsonl"
    lines = [{"question_id": key, "prompt": "?", "text": text} for key, text in ANSWERS.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_command_writes_what_the_benchmark_does(answers, tmp_path):
    output = tmp_path / "results" / "by-command.json"
    assert main(["--src", str(answers), "--dst", str(output)]) == 0
    responses = [Response(Question(key, "?"), text) for key, text in ANSWERS.items()]
    assert output.read_bytes() == export(responses, tmp_path, "", "by-benchmark").read_bytes()
    assert json.loads(output.read_text()) == {"v1_0": ANSWERS[0], "v1_7": ANSWERS[7]}


def test_what_cannot_work_is_one_sentence(answers, tmp_path, capsys):
    (tmp_path / "other.jsonl").write_text("{}\n")
    mistakes = {
        ("none.jsonl", "out.json"): "there is no file",
        ("other.jsonl", "out.json"): "line 1 lacks 'question_id', 'text'",
        ("answers.jsonl", "answers.jsonl"): "--dst",
    }
    for (source, output), sentence in mistakes.items():
        assert main(["--src", str(tmp_path / source), "--dst", str(tmp_path / output)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
