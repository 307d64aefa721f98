"""What ``python -m llava.eval.eval_science_qa`` refuses; what it writes is in test_option_commands."""

import pytest

from llava.eval import eval_science_qa


@pytest.fixture
def argv(tmp_path):
    (tmp_path / "problems.json").write_text('{"1": {"answer": 2, "choices": ["x", "y", "z"]}}')
    (tmp_path / "pid_splits.json").write_text('{"test": ["1"]}')
    (tmp_path / "a.jsonl").write_text('{"question_id": "1", "prompt": "Q", "text": "A"}\n')
    return ["--base-dir", str(tmp_path), "--result-file", str(tmp_path / "a.jsonl")]


def test_too_few_letters_are_said(argv, capsys):
    assert eval_science_qa.main([*argv, "--options", "AB"]) == 2
    assert capsys.readouterr().err == "error: --options is 'AB'; problem 1 needs at least 3 letters\n"


@pytest.mark.parametrize("flag", ["--output-file", "--output-result"])
def test_the_answers_are_not_overwritten(flag, argv, tmp_path, capsys):
    answers = (tmp_path / "a.jsonl").read_text()
    assert eval_science_qa.main([*argv, flag, str(tmp_path / "a.jsonl")]) == 2
    assert f"error: {flag} {tmp_path / 'a.jsonl'} would overwrite" in capsys.readouterr().err
    assert (tmp_path / "a.jsonl").read_text() == answers
