"""``llava eval``: what it lists, checks, runs and refuses."""

import json
import re
import shutil

import pytest

from llava.assistant import SHAPES_CHECKPOINT
from llava.errors import UserError
from llava.eval.__main__ import main
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.command import add_arguments, default_id, load_for
from llava.eval.processes import Processes
from llava.options import CommandParser
from tests.conftest import TINY_LLAVA

TABLE = "gqa mmbench mmbench_cn mme scienceqa textvqa seed mmvet pope vqav2 vizwiz llava_bench qbench"
NAMES = TABLE.split()


def test_the_list_has_thirteen_benchmarks_and_what_each_needs(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert "pope         pope/: llava_pope_test.jsonl, coco, val2014" in lines


def test_every_benchmark_says_all_that_a_run_needs():
    for benchmark in BENCHMARKS:
        assert benchmark.needs
        assert (benchmark.mark is None) == (benchmark.judge is not None)
        assert "{id}" in benchmark.answers
    assert len({benchmark.title for benchmark in BENCHMARKS}) == len(BENCHMARKS)
    assert len({benchmark.folder for benchmark in BENCHMARKS}) == len(BENCHMARKS)


def test_the_check_says_what_is_in_place_and_what_is_missing(miniatures, tmp_path, capsys):
    assert main(["check", "--data", str(miniatures)]) == 0
    assert re.findall(r"^(\w+) +in place$", capsys.readouterr().out, re.MULTILINE) == NAMES
    (tmp_path / "pope" / "coco").mkdir(parents=True)
    assert main(["check", "--data", str(tmp_path)]) == 0
    assert f"missing in {tmp_path / 'pope'}: llava_pope_test.jsonl, coco, val2014" in capsys.readouterr().out


def flags(miniatures, tmp_path, run_id):
    results = str(tmp_path / "results" / f"{run_id}.txt")
    return ["--data", str(miniatures), "--id", run_id, "--results-file", results, "--device", "cpu"]


def test_a_benchmark_by_name_prints_its_score(miniatures, tmp_path, capsys):
    more = ["--token-reduction", "TRIM:16", "--limit", "6", "--batch-size", "4", "--max-new-tokens", "5"]
    assert main(["pope", *flags(miniatures, tmp_path, "by-name"), *more]) == 0
    printed = capsys.readouterr().out
    assert re.match(
        r"POPE \(Avg. F1\), miniature: [\d.]+ \[.*\]; 6 questions; 17.0 visual tokens, \d+ ms", printed
    )
    result = json.loads((tmp_path / "results" / "by-name" / "pope-first-6.json").read_text())
    assert result["settings"]["generation"]["max_new_tokens"] == 5
    assert result["run"]["batch_size"] == 4


def test_who_names_no_model_is_told_which_one_answers(miniatures, tmp_path, capsys, caplog):
    assert main(["pope", *flags(miniatures, tmp_path, "bundled"), "--limit", "2"]) == 0
    assert "the bundled shapes model answers; --model-path names another" in caplog.messages
    assert capsys.readouterr().out.endswith("; answered by the bundled shapes model\n")
    caplog.clear()
    named = ["--model-path", str(SHAPES_CHECKPOINT), "--limit", "2"]
    assert main(["pope", *flags(miniatures, tmp_path, "named"), *named]) == 0
    assert not caplog.messages
    assert capsys.readouterr().out.endswith(f"; answered by {SHAPES_CHECKPOINT}\n")


def test_several_benchmarks_share_a_model_and_one_that_fails_does_not_end_the_others(
    miniatures, tmp_path, capsys, caplog
):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("gqa", "vqav2"):
        (data / name).symlink_to(miniatures / name)
    (data / "pope" / "coco").mkdir(parents=True)
    (data / "pope" / "val2014").mkdir()
    (data / "pope" / "val2014" / "1.jpg").write_text("")
    (data / "pope" / "coco" / "other.json").write_text("")
    (data / "pope" / "llava_pope_test.jsonl").write_text("{}\n")
    argv = ["all", *flags(data, tmp_path, "several"), "--limit", "2", "--only", "pope", "gqa", "vqav2", "mme"]
    assert main(argv) == 1
    printed = capsys.readouterr().out
    assert [line.split(" ")[0] for line in printed.splitlines()] == ["GQA", "VQAv2"]
    assert "pope: there are no label files" in caplog.text
    assert "mme          missing in" in caplog.text


def test_a_run_whose_images_are_all_missing_ends_with_an_error_code(miniatures, tmp_path, capsys):
    shutil.copytree(miniatures / "pope", tmp_path / "pope")
    for image in (tmp_path / "pope" / "val2014").iterdir():
        image.unlink()
    argv = ["pope", *flags(tmp_path, tmp_path, "images"), "--limit", "2"]
    assert main(argv) == 2
    assert "pope lacks val2014" in capsys.readouterr().err  # an empty folder is as good as none
    (tmp_path / "pope" / "val2014" / "other.jpg").write_text("")
    assert main(argv) == 1
    assert "no score; 2 questions; 2 failed, the first: " in capsys.readouterr().out


def test_a_split_needs_the_images_of_its_own(miniatures, tmp_path, capsys):
    shutil.copytree(miniatures / "vqav2", tmp_path / "vqav2")
    assert main(["vqav2", *flags(tmp_path, tmp_path, "split"), "--split", "val2014"]) == 2
    assert "vqav2 lacks llava_vqav2_mscoco_val2014.jsonl or v2_" in (err := capsys.readouterr().err)
    assert "json, val2014;" in err


def test_all_are_twelve(miniatures, tmp_path, capsys):
    argv = ["all", *flags(miniatures, tmp_path, "twelve"), "--limit", "1", "--max-new-tokens", "2"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert sum("needs a judge" in line for line in lines) == 2
    written = sorted(path.stem for path in (tmp_path / "results" / "twelve").glob("*.json"))
    assert written == sorted(f"{name}-first-1" for name in set(NAMES) - {"qbench"})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nonsense"], r"invalid choice: 'nonsense' \(choose from .*gqa.*qbench"),
        (["all", "--only", "gqq"], "there is no benchmark 'gqq'; accepted: gqa, mmbench, "),
        (
            ["all", "--data", "/nowhere"],
            "no benchmark is in place in /nowhere; playground/data/README",
        ),
        (
            ["pope", "--data", "/nowhere"],
            "pope is not in place: /nowhere/pope lacks llava_pope_test",
        ),
        (["pope", "--id", "a/b"], "--id is 'a/b'; accepted: a name for files, of at most 128"),
        (["pope", "--id", ".."], "--id is '..'; accepted: a name"),
        (["pope", "--split", "val"], "pope has no split 'val'"),
        (["pope", "--limit", "0"], "'0' is not a valid number; accepted: 1 or more"),
        (["pope", "--temperature", "-1"], "temperature is -1.0; accepted: 0"),
        (["pope", "--token-reduction", "TRIM:0"], "'TRIM:0' is not a token reduction"),
        ([], "arguments are required: command"),
    ],
)
def test_what_is_refused_in_one_sentence(argv, message, miniatures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [] if not argv or "--data" in argv or argv == ["nonsense"] else ["--data", str(miniatures)]
    assert main([*argv, *data]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)


def test_results_that_cannot_be_written_are_said_before_the_model_is_loaded(miniatures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["pope", "--data", str(miniatures), "--results-file", str(tmp_path / "file" / "a.txt")]
    assert main([*argv, "--model-path", "/nowhere"]) == 2
    assert "file/a.txt cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "reduction", "expected"),
    [
        (None, None, "llava-shapes"),
        ("liuhaotian/llava-v1.5-7b", None, "llava-v1.5-7b"),
        ("/models/run/checkpoint-100/", "TRIM:-1", "run_checkpoint-100@TRIM_-1"),
        ("llava-shapes", "none", "llava-shapes@none"),  # not what llava-shapes-none is called
        ("llava@none", None, "llava_none"),
    ],
)
def test_a_run_is_named_after_model_and_reduction(model, reduction, expected):
    assert default_id(model, reduction) == expected


def test_results_go_below_results_miniatures_apart(miniatures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = [
        "pope",
        "--data",
        str(miniatures),
        "--limit",
        "1",
        "--model-path",
        str(TINY_LLAVA),
        "--device",
        "cpu",
    ]
    assert main([*argv, "--max-new-tokens", "1", "--token-reduction", "none"]) == 0
    assert (tmp_path / "results" / "miniatures" / "llava-v1.5-tiny@none" / "pope-first-1.json").exists()
    assert main(["report", "results"]) == 0
    assert "| `llava-v1.5-tiny@none`" in capsys.readouterr().out


def test_vllm_has_its_own_way_to_use_several_devices():
    parser = CommandParser()
    add_arguments(parser)
    options = parser.parse_args(["pope", "--engine", "vllm"])
    with pytest.raises(UserError, match="2 processes were launched; vLLM uses several devices from one"):
        load_for(options, Processes(0, 2))
