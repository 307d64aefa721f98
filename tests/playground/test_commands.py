"""What a user can get wrong with the commands of the shapes dataset is one line, like that of all others."""

from pathlib import Path

import pytest

from playground.shapes import build, make_data, measure, measure_clip, measure_latency


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            measure,
            ["--questions", "0"],
            "argument --questions: '0' is not a valid number; accepted: 1 or more",
        ),
        (measure, ["--model-path", "/nowhere"], "no model folder '/nowhere'"),
        (measure, ["--token-reduction", "TRIM:0"], "'TRIM:0' is not a token reduction"),
        (measure_latency, ["--questions", "0"], "argument --questions"),
        (measure_latency, ["--token-reduction", "TRIM:0"], "'TRIM:0' is not a token reduction"),
        (measure_clip, ["--pictures", "-3"], "argument --pictures"),
        (measure_clip, ["--clip", "/nowhere"], "no model folder '/nowhere'"),
        (make_data, ["--output", "FILE", "--pictures", "0"], "argument --pictures"),
        (make_data, ["--output", "FILE/data", "--pictures", "1"], "nothing can be written to FILE/data"),
        (build, ["--preset", "big"], "invalid choice: 'big'"),
        (build, ["--preset", "smoke", "--work", "FILE/work"], "FILE/work could not be made: Not a directory"),
    ],
)
def test_a_mistake_is_one_line(command, arguments, message, tmp_path: Path, capsys):
    file = tmp_path / "file"
    file.touch()
    assert command.main([argument.replace("FILE", str(file)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.replace("FILE", str(file)) in error


def test_numbers_that_cannot_be_written_are_one_line(tmp_path: Path, capsys):
    arguments = ["--pictures", "1", "--output", str(tmp_path / "none" / "numbers.json")]
    assert measure_clip.main(arguments) == 2
    printed = capsys.readouterr()
    assert "kept" in printed.out  # nothing that was measured is lost
    assert "could not be written" in printed.err
