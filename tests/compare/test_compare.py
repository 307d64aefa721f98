"""`llava compare`: the same questions for every setting, resumed, with intervals; and how it is told."""

import csv
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from llava.assistant import Assistant
from llava.compare import subjects, tables
from llava.compare.asking import NO_IMAGE, Outcome, ask_with
from llava.compare.subjects import Subject, accepted_subjects, load_subjects
from llava.compare.tables import NOTHING, Table
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval import provenance
from llava.eval.benchmark import Benchmark, Mark
from llava.eval.processes import Processes
from llava.eval.provenance import question_digests, settings_of
from llava.eval.runner import Plan
from llava.main import main
from llava.model.multimodal_encoder.text_encoder import TextEncoder
from playground.shapes import benchmark as shapes_benchmark
from playground.shapes.benchmark import BENCHMARK
from playground.shapes.make_benchmarks import main as make_benchmarks


@pytest.fixture
def asked(monkeypatch):
    """List the settings of the questions that are really asked."""
    settings, answer_all = [], Assistant.answer_all

    def listen(assistant, requests, *rest):
        requests = list(requests)
        settings.extend(str(request.token_reduction) for request in requests)
        return answer_all(assistant, requests, *rest)

    monkeypatch.setattr(Assistant, "answer_all", listen)
    return settings


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniatures")
    make_benchmarks(["--output", str(folder)])
    return folder


def compare(folder, *more):
    return main(["compare", "--questions", "12", "--device", "cpu", "--out", str(folder), *more])


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return {line["setting"]: line for line in csv.DictReader(file)}


def test_settings_are_asked_once_and_taken_up_again(tmp_path, asked, capsys):
    compare(tmp_path, "--methods", "TRIM", "Random", "--budgets", "16,36", "--also", "TRIM:-1", "TRIM:16")
    settings = ["none", "TRIM:16", "TRIM:36", "Random:16", "Random:36", "TRIM:-1"]
    assert asked == [setting for setting in settings for _ in range(12)]
    rows = read_rows(tmp_path / "shapes.csv")
    assert list(rows) == settings
    assert rows["none"]["visual tokens"] == "256.0"
    assert rows["Random:16"]["visual tokens"] == "17.0"
    assert rows["none"]["less none"] == rows["TRIM:16"]["less TRIM"] == NOTHING
    assert rows["none"][tables.KEPT] == "100.0"
    assert float(rows["TRIM:-1"][tables.KEPT]) > 95 > float(rows["Random:16"][tables.KEPT])
    written = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert written.startswith(
        "### Shapes\n\nThe first 12 of 4000 questions, asked of the bundled shapes model (CPU, "
    )
    assert written.splitlines()[2].endswith(" cores, float32).")
    assert written.count("\n| ") == 1 + 1 + len(settings)
    assert written in capsys.readouterr().out

    asked.clear()
    journal = tmp_path / "shapes" / "Random-36.jsonl.journal" / "rank-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:7]))  # as if it had been killed there
    compare(tmp_path, "--methods", "TRIM", "Random", "--budgets", "16,36")
    assert asked == ["Random:36"] * 5
    assert read_rows(tmp_path / "shapes.csv")["Random:36"]["accuracy"] == rows["Random:36"]["accuracy"]


def test_what_another_comparison_has_found_is_kept(tmp_path, asked, caplog):
    compare(tmp_path, "--methods", "TRIM", "--budgets", "16")
    table, curve = tmp_path / "shapes.csv", tmp_path / "shapes.png"
    first = table.read_bytes()
    compare(tmp_path, "--methods", "TRIM", "--budgets", "16")
    assert not (tmp_path / "shapes.csv.1").exists()
    compare(tmp_path, "--methods", "Random", "--budgets", "16")
    assert (tmp_path / "shapes.csv.1").read_bytes() == first
    assert (tmp_path / "comparison.md.1").exists()
    assert (tmp_path / "shapes.png.1").exists() == curve.exists()
    assert list(read_rows(table)) == ["none", "Random:16"]
    assert "kept what an earlier comparison has found" in caplog.text
    assert asked == ["none"] * 12 + ["TRIM:16"] * 12 + ["Random:16"] * 12


def test_every_setting_that_reads_the_question_takes_the_time_of_reading_it(tmp_path, monkeypatch):
    read, encode = [], TextEncoder._encode
    monkeypatch.setattr(
        TextEncoder, "_encode", lambda encoder, text: read.append(text) or encode(encoder, text)
    )
    compare(tmp_path, "--methods", "TRIM", "--budgets", "16,36")
    assert read[: len(read) // 2] == read[len(read) // 2 :]
    assert len(set(read)) > 1


def test_every_model_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["compare", "--questions", "1", "--device", "cpu", "--methods", "TRIM", "--budgets", "16"])
    assert (tmp_path / "results" / "compare" / "llava-shapes" / "comparison.md").exists()


def test_benchmarks_are_asked_as_llava_eval_does_and_averaged(tmp_path, miniatures, asked):
    where = ["--data", str(miniatures), "--questions", "4"]
    compare(tmp_path, *where, "--on", "pope", "gqa", "--methods", "TRIM", "PruMerge+", "--budgets", "100")
    text = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert text.count("questions of a miniature, asked of the bundled shapes model (CPU, ") == 2
    assert [line for line in text.splitlines() if line[:1] == "#"] == [
        "### POPE (Avg. F1)",
        "### GQA (Acc)",
        "### All",
    ]
    average = [cell.strip() for cell in text.splitlines()[-3].split("|")[1:-1]]
    assert average[:2] == ["none", "256.0"]
    assert average[-1] == "100.0"
    unmet = [cell.strip() for cell in text.splitlines()[-1].split("|")[1:-1]]
    assert unmet == ["PruMerge+:100", *[NOTHING] * 4]
    # The same answers as by the command for one benchmark.
    results = tmp_path / "results"
    evaluated = ["--results-folder", str(results), "--id", "once", "--token-reduction", "TRIM:100"]
    main(["eval", "gqa", *where[:2], "--limit", "4", "--device", "cpu", *evaluated])
    (answers,) = (miniatures / "gqa").rglob("once/merge.jsonl")
    own = (tmp_path / "gqa" / "TRIM-100.jsonl").read_text(encoding="utf-8")
    assert answers.read_text(encoding="utf-8") == own
    assert asked.count("TRIM:100") == 8


def test_only_what_is_scored_here_can_be_compared_on(miniatures, tmp_path):
    assert accepted_subjects()[0] == "shapes"
    assert "mmvet" not in accepted_subjects()  # a judge scores it
    with pytest.raises(UserError, match="cannot be compared on 'mmvet'; accepted: shapes, "):
        load_subjects(["mmvet"], miniatures, None)
    with pytest.raises(UserError, match="gqa is not in place"):
        load_subjects(["gqa"], tmp_path, None)
    shutil.copytree(miniatures / "vizwiz", tmp_path / "vizwiz")
    (tmp_path / "vizwiz" / "test.json").unlink()
    with pytest.raises(UserError, match=r"the answers of vizwiz.* are not public"):
        load_subjects(["vizwiz"], tmp_path, None)
    assert [subject.limit for subject in load_subjects(["shapes", "gqa", "gqa"], miniatures, None)] == [
        800,
        None,
    ]


def test_first_questions_without_public_answers_are_refused(monkeypatch, tmp_path):
    def load(folder, split):
        questions = list(BENCHMARK.load(folder, split))[:5]
        return [replace(question, target=None) for question in questions[:3]] + questions[3:]

    monkeypatch.setattr(subjects, "_from_playground", lambda name: replace(BENCHMARK, load=load))
    with pytest.raises(UserError, match="none of the first 3 questions of shapes has a public answer"):
        load_subjects(["shapes"], tmp_path, 3)
    assert load_subjects(["shapes"], tmp_path, 4)[0].limit == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "Trim"], "there is no method 'Trim'; accepted: TRIM, Random, Pool"),
        (["--budgets", "16,x"], "'16,x' are no budgets; accepted: whole numbers above 1"),
        (["--budgets", "1"], "'1' are no budgets"),
        (["--also", "TRIM"], "'TRIM' is not a token reduction"),
        (["--on", "poppe"], "cannot be compared on 'poppe'; accepted: shapes, "),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_is_loaded(arguments, message, tmp_path, capsys):
    assert compare(tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


STAGES = dict.fromkeys(tables.STAGES, 1.0)


def outcome(setting, points, tokens=10, failures=0):
    marks = [Mark(str(number), one, "color") for number, one in enumerate(points)]
    return Outcome(setting, marks, [tokens] * len(points), STAGES, failures=failures)


def rows_of(*outcomes):
    return {row["setting"]: row for row in Table(BENCHMARK, outcomes).rows()}


def test_a_star_says_that_a_difference_is_sure():
    good, same, bad = ([1] * 190 + [0] * 10), ([0] * 10 + [1] * 190), [1, 0] * 100
    rows = rows_of(outcome("none", good), outcome("TRIM:16", same), outcome("SCOPE:16", bad))
    assert rows["TRIM:16"]["accuracy"].startswith("95.0 (")
    assert rows["TRIM:16"]["less none"].startswith("+0.0")
    assert not rows["TRIM:16"]["less none"].endswith("*")
    assert rows["SCOPE:16"]["less TRIM"].startswith("-45.0")
    assert rows["SCOPE:16"]["less TRIM"].endswith("*")
    assert "less TRIM" not in rows_of(outcome("none", good), outcome("SCOPE:16", bad))["SCOPE:16"]


def test_a_budget_that_cannot_be_met_ends_nothing(tmp_path, capsys):
    assert not compare(tmp_path, "--methods", "PruMerge+", "VisionZip", "--budgets", "3,100")
    shown = capsys.readouterr().out
    assert "PruMerge+:100 asks for 100 of 256 patches" in shown
    assert "VisionZip:3 asks for 3 of 256 visual tokens" in shown
    rows = read_rows(tmp_path / "shapes.csv")
    assert rows["VisionZip:100"]["visual tokens"] == "100.0"
    assert rows["PruMerge+:100"]["visual tokens"] == NOTHING


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path, asked, capsys):
    (tmp_path / "file").write_text("")
    assert compare(tmp_path / "file" / "below") == 2
    assert "file" in capsys.readouterr().err
    assert not asked


def test_what_cannot_be_met_or_failed_is_said_in_the_row():
    rows = rows_of(
        outcome("none", [1, 0]),
        Outcome("PruMerge+:100", error="100 tokens cannot be had"),
        outcome("TRIM:16", [1, 0], failures=1),
    )
    assert rows["PruMerge+:100"]["accuracy"] == "100 tokens cannot be had"
    assert rows["PruMerge+:100"].keys() == rows["none"].keys()
    assert tables.KEPT not in rows["none"]  # nobody knows it
    assert rows["TRIM:16"]["accuracy"].endswith(", 1 failed")


def test_different_counts_are_drawn_from_fewest_to_most():
    varied = Outcome("TRIM:-1", [Mark(str(n), 1.0) for n in range(4)], [3, 9, 9, 60], STAGES)
    row = rows_of(varied)["TRIM:-1"]
    assert row["histogram"] == "3 ▄█············▄ 60"
    # What is empty is drawn too, so that Markdown does not leave it out.
    assert row["histogram"] in Table(BENCHMARK, [varied]).as_markdown([row])


def test_a_benchmark_without_images_has_no_tokens_to_show():
    textual = Outcome("TRIM:16", [Mark("0", 1.0)], [], STAGES)
    assert rows_of(textual)["TRIM:16"]["histogram"] == NOTHING


def test_the_average_is_over_what_has_a_score():
    first = Benchmark("one", "One", "", (), load=BENCHMARK.load)
    second = Benchmark("two", "Two", "", (), load=BENCHMARK.load)
    text = tables.describe_average(
        [
            Table(first, [outcome("none", [1, 1, 1, 1]), outcome("TRIM:16", [1, 1, 0, 0])]),
            Table(second, [outcome("none", [1, 1, 0, 0]), outcome("TRIM:16", [1, 1, 0, 0])]),
            Table(first, [outcome("none", [0, 0, 0, 0]), outcome("TRIM:16", [1, 0, 0, 0])]),
        ]
    )
    assert text.splitlines()[-1].split("|")[-2].strip() == "75.0"  # of 50% and 100%


def test_a_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    table = Table(BENCHMARK, [outcome("none", [1, 1, 0], 256), outcome("TRIM:16", [1, 0, 0], 17)])
    assert table.draw(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_questions_without_their_images_tell_what_guessing_is_worth(tmp_path, asked):
    compare(tmp_path, "--methods", "TRIM", "--budgets", "16", "--on", "hard-shapes", "--without-image")
    rows = read_rows(tmp_path / "hard-shapes.csv")
    assert list(rows) == ["none", "TRIM:16", "no image"]
    assert rows["no image"]["visual tokens"] == "0.0"
    assert rows["no image"][tables.KEPT] == NOTHING
    assert set(rows["none"]) > {
        "color",
        "shape",
        "presence",
        "count",
        "position",
        "character",
        "size",
        "description",
    }
    assert asked == ["none"] * 12 + ["TRIM:16"] * 12 + ["none"] * 12


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(device="cpu", token_reduction="none")


def plan(folder, reduction):
    generation = Generation(max_new_tokens=2)
    return Plan("test", folder / "answers.jsonl", "model", "vicuna_v1", generation, reduction=reduction)


def ask(assistant, questions, setting, folder):
    reduction = "none" if setting == NO_IMAGE else setting
    return ask_with(
        setting, assistant, Subject(BENCHMARK, questions, None), plan(folder, reduction), Processes()
    )


def test_one_question_that_fails_is_a_wrong_answer_with_and_without_images(assistant, tmp_path):
    questions = BENCHMARK.load(tmp_path, "")[:3]
    questions[1] = replace(questions[1], text="word " * 3000)
    for setting in ("TRIM:16", NO_IMAGE):
        found = ask(assistant, questions, setting, tmp_path / setting[:2])
        assert (found.failures, found.error, len(found.marks)) == (1, None, 3)
        assert found.marks[1].points == 0


def test_a_setting_that_the_model_cannot_have_is_a_row_that_says_so(assistant, tmp_path, monkeypatch):
    def refuse(self, reducer):
        raise UserError("this CLIP has no text encoder")

    monkeypatch.setattr(type(assistant.encoder.tower), "prepare", refuse)
    found = ask(assistant, BENCHMARK.load(tmp_path, "")[:3], "TRIM:16", tmp_path)
    assert (found.error, found.marks) == ("this CLIP has no text encoder", [])


def test_nothing_is_told_of_what_methods_that_average_keep(assistant, tmp_path):
    questions = BENCHMARK.load(tmp_path, "")[:3]
    assert ask(assistant, questions, "Pool:16", tmp_path / "pool").about_kept is None
    assert ask(assistant, questions, "none", tmp_path / "none").about_kept == 1


def test_answers_of_a_reducer_whose_code_has_changed_are_not_taken(assistant, tmp_path, monkeypatch):
    questions = BENCHMARK.load(tmp_path, "")[:3]
    code = tmp_path / "code.py"
    code.write_text("first")
    monkeypatch.setattr(provenance.inspect, "getsourcefile", lambda kind: str(code))
    first = settings_of(assistant, "TRIM:16")
    code.write_text("second")
    assert settings_of(assistant, "TRIM:16") != first
    assert question_digests(questions)[0] != question_digests(questions)[1]


def test_answers_about_pictures_drawn_otherwise_are_not_taken(tmp_path, monkeypatch):
    questions = BENCHMARK.load(tmp_path, "")[:1]
    first = question_digests(questions)
    monkeypatch.setattr(shapes_benchmark, "drawing_digest", lambda: "other code")
    assert question_digests(questions) != first


@pytest.mark.slow
def test_two_processes_compare_as_one(tmp_path):
    arguments = ["compare", "--questions", "6", "--methods", "TRIM", "--budgets", "16", "--device", "cpu"]
    main([*arguments, "--out", str(tmp_path / "one")])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "llava.main"]
    command = [sys.executable, *launch, *arguments, "--out", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    for name in ("none.jsonl", "TRIM-16.jsonl"):
        one, two = ((tmp_path / run / "shapes" / name).read_text() for run in ("one", "two"))
        assert one == two
