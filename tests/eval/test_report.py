"""Runs beside each other: tables, differences, the curve, and that miniatures never mix with real data."""

import json

import pytest
from PIL import Image

from llava.errors import MissingFileError, UserError
from llava.eval.benchmarks.gqa import GQA
from llava.eval.report import KEYS, Row, collect, markdown_table, read_results, run_report
from llava.options import CommandParser


def result(run_id, benchmark="gqa", points=(1, 1, 0, 1), **changes):
    share = 100 * sum(points) / len(points)
    return {
        "benchmark": benchmark,
        "title": benchmark,
        "split": {"gqa": "testdev_balanced", "vqav2": "test-dev2015"}.get(benchmark, ""),
        "questions": len(points),
        "questions_available": len(points),
        "id": run_id,
        "miniature": False,
        "date": "2026-01-01T00:00:00+00:00",
        "score": {"name": "accuracy", "best": 100, "value": share, "low": share - 5, "high": share + 5},
        "judge": None,
        "failures": 0,
        "cost": {"visual_tokens": 576.0},
        "settings": {"reduction": "none", "questions": "abc"},
        "marks": [[str(number), int(value), "", ""] for number, value in enumerate(points)],
        **changes,
    }


def reduced(run_id, **changes):
    settings = {"reduction": "TRIM:-1", "questions": "abc"}
    return result(run_id, **{"settings": settings, "cost": {"visual_tokens": 120.0}, **changes})


@pytest.fixture
def write(tmp_path):
    def write(*results):
        for number, item in enumerate(results):
            path = tmp_path / "results" / f"{item['id']}-{number}.json"
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(item))
        return tmp_path / "results"

    return write


def report(folder, *more, output=None):
    from llava.eval.report import add_report_arguments

    parser = CommandParser()
    add_report_arguments(parser)
    run_report(parser.parse_args([str(folder), "--output", str(output or folder / "report"), *more]))


def rows(text):
    return {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    }


def test_scores_stand_beside_each_other_with_their_mean_relative_to_the_baseline(write, capsys):
    folder = write(
        reduced("trim", points=(1, 0, 0, 1)),
        reduced("trim", benchmark="pope", points=(1, 1, 1, 1)),
        result("plain"),
        result("plain", benchmark="pope", points=(1, 1, 0, 0)),
    )
    report(folder)
    printed = capsys.readouterr().out
    found = rows(printed.split("Differences")[0])
    assert found["GQA (Acc)"] == ["75.00 [70.00, 80.00]", "50.00 [45.00, 55.00]"]
    # 50/75 and 100/50: (66.7 + 200) / 2 percent of the run without reduction, which is the baseline.
    assert found["mean relative to `plain` (of n)"] == ["100.0% (2)", "133.3% (2)"]
    assert found["reduction"] == ["`none`", "`TRIM:-1`"]
    assert found["visual tokens per image"] == ["576.0", "120.0"]
    assert (folder / "report.md").read_text() == printed.rstrip("\n") + "\n"
    with Image.open(folder / "report.png") as picture:
        assert picture.width > 300


def test_differences_are_paired(write, capsys):
    points = [number % 3 > 0 for number in range(90)]
    better = [value or number % 9 == 0 for number, value in enumerate(points)]
    report(write(result("plain", points=points), reduced("trim", points=better)))
    found = rows(capsys.readouterr().out.split("Differences")[1])
    value, interval = found["GQA (Acc)"][0].split(" ", 1)
    assert value == "+11.11"
    assert interval.startswith("[+4.")  # surely above 0


def test_other_questions_are_not_compared(write, capsys):
    other = {"reduction": "TRIM:-1", "questions": "xyz"}
    report(write(result("plain"), reduced("trim", settings=other)))
    assert rows(capsys.readouterr().out.split("Differences")[1])["GQA (Acc)"] == ["other questions"]


def test_miniatures_have_a_table_of_their_own(write, capsys):
    report(write(result("plain"), reduced("mini", miniature=True)))
    real, miniature = capsys.readouterr().out.split("## Miniatures of the shapes world")
    assert "`plain`" in real
    assert "`mini`" not in real
    assert "`mini`" in miniature
    assert "`plain`" not in miniature


def test_rows_without_a_score_say_why(write, capsys):
    report(
        write(
            result("plain", benchmark="pope", failures=3),
            result("plain", benchmark="gqa", score=None, judge="needs a judge", marks=[]),
            result("plain", benchmark="vqav2", score=None, marks=[], failures=1),
        )
    )
    found = rows(capsys.readouterr().out)
    assert found["GQA (Acc)"] == ["needs a judge"]
    assert found["VQAv2 (Acc)"] == ["for submission; 1 failed"]
    assert found["POPE (Avg. F1)"][0].endswith("; 3 failed")


def test_of_two_results_of_one_run_the_newer_counts():
    older, newer = result("plain"), result("plain", points=(1, 1, 1, 1), date="2026-02-01T00:00:00+00:00")
    (run,) = collect([newer, older], miniature=False)
    assert run.score(Row(GQA)) == 100


def test_parts_of_a_benchmark_have_rows_of_their_own_and_do_not_hide_each_other(write, capsys):
    report(
        write(
            result("plain", benchmark="vqav2"),
            result("plain", benchmark="vqav2", split="test2015", score=None, marks=[]),
            result("plain", benchmark="gqa", questions=2, questions_available=4, points=(1, 0))
            | {"questions": 2},
        )
    )
    found = rows(capsys.readouterr().out)
    assert found["VQAv2 (Acc)"] == ["75.00 [70.00, 80.00]"]
    assert found["VQAv2 (Acc), test2015"] == ["for submission"]
    assert found["GQA (Acc), first 2 of 4"] == ["50.00 [45.00, 55.00]"]


def test_the_mean_is_of_rows_that_can_be_compared(write, capsys):
    other = {"reduction": "TRIM:-1", "questions": "xyz"}
    folder = write(
        result("plain"),
        result("plain", benchmark="pope"),
        reduced("trim", points=(1, 0, 0, 1)),
        reduced("trim", benchmark="pope", points=(1, 1, 1, 1), settings=other),
    )
    report(folder)
    assert rows(capsys.readouterr().out)["mean relative to `plain` (of n)"] == ["100.0% (2)", "66.7% (1)"]


def test_a_baseline_may_be_named(write, capsys):
    folder = write(result("plain"), reduced("trim"))
    report(folder, "--baseline", "trim")
    assert "mean relative to `trim` (of n)" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no run 'other'; accepted: plain, trim"):
        report(folder, "--baseline", "other")


def test_what_is_no_result_is_refused(write, tmp_path):
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"other.json is no result of llava eval"):
        read_results([path])
    with pytest.raises(MissingFileError, match="there are no results in"):
        read_results([tmp_path])
    with pytest.raises(MissingFileError, match="there is no file"):
        read_results([tmp_path / "none.json"])


def test_a_report_that_cannot_be_written_is_said(write, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report(write(result("plain")), output=tmp_path / "file" / "report")


def test_columns_line_up():
    assert markdown_table(["", "b"], [["long", "c"]]).splitlines() == [
        "|      | b |",
        "| ---- | - |",
        "| long | c |",
    ]


def test_what_is_damaged_in_a_folder_is_passed_over_and_what_is_named_is_refused(write, capsys, caplog):
    folder = write(result("plain"), {**result("broken"), "score": [1]})
    (folder / "cut.json").write_text('{"benchmark": "gqa", "ti')
    (folder / "other.json").write_text('{"a": 1}')  # somebody else's
    report(folder)
    assert "broken" not in capsys.readouterr().out
    assert "passed over" in caplog.text and "'score' is [1]; expected an object" in caplog.text
    assert "cut.json is not JSON" in caplog.text
    assert "other.json" not in caplog.text
    for name, sentence in (
        ("broken-1.json", "'score' is"),
        ("cut.json", "is not JSON"),
        ("other.json", "is no result"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_results([folder / name])


@pytest.mark.parametrize("key", list(KEYS))
@pytest.mark.parametrize("value", [None, True, 5, "x", [1], [["a"]], {"a": 1}])
def test_no_value_of_a_result_ends_in_a_traceback(key, value, write):
    item = {**result("one"), key: value}
    folder = write(item, result("two"))
    try:
        read_results([folder / f"{item['id']}-0.json"])
    except (UserError, OSError) as error:
        assert "one-0.json" in str(error) or key == "id"
        return
    report(folder)


def test_an_id_does_not_end_a_cell(write, capsys):
    report(write(result("a|b\nc")))
    header = capsys.readouterr().out.splitlines()[2]
    assert r"| `a\|b c` " in header
