"""`llava compare`: the same questions for every setting, kept and taken up again, with intervals."""

import csv
import json

import pytest

from llava.compare import asking, tables
from llava.compare.asking import Outcome
from llava.main import main


@pytest.fixture
def few(monkeypatch):
    """Count the settings that are really asked."""
    asked, ask = [], asking.ask

    def count(assistant, setting, *rest):
        asked.append(setting)
        return ask(assistant, setting, *rest)

    monkeypatch.setattr(asking, "ask", count)
    return asked


def compare(folder, *more):
    return main(["compare", "--questions", "12", "--device", "cpu", "--out", str(folder), *more])


def test_settings_are_asked_once_and_taken_up_again(tmp_path, few, capsys):
    compare(tmp_path, "--methods", "TRIM", "Random", "--budgets", "16,36", "--also", "TRIM:-1", "TRIM:16")
    assert few == ["none", "TRIM:16", "TRIM:36", "Random:16", "Random:36", "TRIM:-1"]
    with (tmp_path / "comparison.csv").open(newline="", encoding="utf-8") as file:
        lines = {line["setting"]: line for line in csv.DictReader(file)}
    assert list(lines) == few
    assert lines["none"]["visual tokens"] == "256.0"
    assert lines["Random:16"]["visual tokens"] == "17.0"
    assert lines["none"]["less none"] == lines["TRIM:16"]["less TRIM"] == "-"
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8").count("\n") == 2 + len(few)

    few.clear()
    kept = json.loads((tmp_path / "TRIM-36.json").read_text(encoding="utf-8"))
    (tmp_path / "Random-36.json").unlink()
    compare(tmp_path, "--methods", "TRIM", "Random", "--budgets", "16,36")
    assert few == ["Random:36"]
    assert json.loads((tmp_path / "TRIM-36.json").read_text(encoding="utf-8")) == kept

    few.clear()
    main(
        [
            "compare",
            "--questions",
            "8",
            "--device",
            "cpu",
            "--out",
            str(tmp_path),
            "--methods",
            "TRIM",
            "--budgets",
            "16",
        ]
    )
    assert few == ["none", "TRIM:16"]  # fewer questions are others
    assert "none: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "Trim"], "there is no method 'Trim'; accepted: TRIM, Random, Pool"),
        (["--budgets", "16,x"], "'16,x' are no budgets; accepted: whole numbers above 1"),
        (["--budgets", "1"], "'1' are no budgets"),
        (["--also", "TRIM"], "'TRIM' is not a token reduction"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_loaded(arguments, message, tmp_path, capsys):
    assert compare(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def outcome(setting, points, tokens=10):
    return Outcome(setting, points, ["color"] * len(points), [tokens] * len(points), 1.0, 2.0)


def test_a_star_says_that_a_difference_is_sure():
    good, same, bad = ([1] * 190 + [0] * 10), ([0] * 10 + [1] * 190), [1, 0] * 100
    lines = {
        line["setting"]: line
        for line in tables.rows([outcome("none", good), outcome("TRIM:16", same), outcome("SCOPE:16", bad)])
    }
    assert lines["TRIM:16"]["accuracy"].startswith("95.0 (")
    assert lines["TRIM:16"]["less none"].startswith("+0.0") and not lines["TRIM:16"]["less none"].endswith(
        "*"
    )
    assert lines["SCOPE:16"]["less TRIM"].startswith("-45.0") and lines["SCOPE:16"]["less TRIM"].endswith("*")


def test_a_budget_that_cannot_be_met_ends_nothing(tmp_path, capsys):
    assert not compare(tmp_path, "--methods", "PruMerge+", "VisionZip", "--budgets", "3,100")
    shown = capsys.readouterr().out
    assert "PruMerge+:100 asks for 100 of 256 patches" in shown
    assert "VisionZip:3 asks for 3 of 256 visual tokens" in shown
    with (tmp_path / "comparison.csv").open(newline="", encoding="utf-8") as file:
        lines = {line["setting"]: line for line in csv.DictReader(file)}
    assert lines["VisionZip:100"]["visual tokens"] == "100.0"
    assert lines["PruMerge+:100"]["visual tokens"] == "-"


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path, few, capsys):
    (tmp_path / "file").write_text("")
    assert compare(tmp_path / "file" / "below") == 2
    assert "file" in capsys.readouterr().err
    assert not few


def test_what_cannot_be_met_is_a_line_of_its_own():
    lines = tables.rows([outcome("none", [1, 0]), Outcome("PruMerge+:100", error="100 tokens cannot be had")])
    assert lines[1]["accuracy"] == "100 tokens cannot be had"
    assert lines[1].keys() == lines[0].keys()


def test_different_counts_are_drawn_from_fewest_to_most():
    varied = Outcome("TRIM:-1", [1] * 4, ["color"] * 4, [3, 9, 9, 60], 1.0, 1.0)
    assert tables.rows([varied])[0]["histogram"].startswith("3 ")
    assert tables.rows([varied])[0]["histogram"].endswith(" 60")


def test_a_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    assert tables.draw(
        [outcome("none", [1, 1, 0], 256), outcome("TRIM:16", [1, 0, 0], 17)], tmp_path / "curve.png"
    )
    assert (tmp_path / "curve.png").stat().st_size > 1000
