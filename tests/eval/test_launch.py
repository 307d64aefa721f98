"""Several processes from one command: what it cannot start is one sentence."""

import pytest

from llava.eval import launch


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "the following arguments are required: count"),
        (["all", "pope"], "argument count: 'all' is not a valid number; accepted: 1 or more"),
        (["0", "pope"], "argument count: '0' is not a valid number; accepted: 1 or more"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    assert launch.main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_each_process_gets_what_follows(monkeypatch: pytest.MonkeyPatch):
    started: list[str] = []
    monkeypatch.setattr(launch, "launch", started.extend)
    assert launch.main(["2", "pope", "--limit", "3"]) == 0
    assert started[-7:] == ["--nproc_per_node", "2", "-m", "llava.eval", "pope", "--limit", "3"]
