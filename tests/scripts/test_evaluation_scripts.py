"""The evaluation's shell scripts: TRIM's arguments, and all benchmarks from nothing to one table."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "scripts" / "v1_5" / "eval").glob("*.sh"))
SHAPES = str(ROOT / "playground" / "shapes" / "checkpoints" / "llava-shapes")


def run(*command, **variables):
    """Run a script with the Python of the tests, as in an environment that is active."""
    folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{folder}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder.parent),
        **{name: str(value) for name, value in variables.items()},
    }
    return subprocess.run(
        ["bash", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_every_benchmark_has_a_script_that_names_it():
    texts = {path.stem: path.read_text() for path in SCRIPTS if path.stem != "run"}
    named = {stem: text.split('run.sh" ')[1].split()[0] for stem, text in texts.items()}
    assert named == {
        **{"gqa": "gqa", "mmbench": "mmbench", "mmbench_cn": "mmbench_cn", "mme": "mme", "sqa": "scienceqa"},
        **{"textvqa": "textvqa", "testvqa": "textvqa", "seed": "seed", "mmvet": "mmvet", "pope": "pope"},
        **{"vqav2": "vqav2", "vizwiz": "vizwiz", "llavabench": "llava_bench"},
        **{"qbench": "qbench", "qbench_zh": "qbench"},
    }
    assert all(os.access(path, os.X_OK) for path in SCRIPTS)


@pytest.mark.parametrize(
    ("script", "words", "split"),
    [
        ("qbench.sh", ["dev"], "llvisionqa_dev"),
        ("qbench.sh", ["test", "my-id"], "llvisionqa_test"),
        ("qbench_zh.sh", [], "质衡-问答-验证集"),
        ("qbench_zh.sh", ["test", "my-id"], "质衡-问答-测试集"),
    ],
)
def test_qbench_takes_the_split_in_llavas_place(script, words, split, tmp_path):
    done = run(ROOT / "scripts" / "v1_5" / "eval" / script, *words, DATA=tmp_path, GPUS=1)
    assert done.returncode == 2
    assert f"qbench is not in place: {tmp_path / 'qbench'} lacks {split}.json, " in done.stderr


@pytest.mark.slow
def test_a_script_takes_trims_arguments(miniatures, tmp_path):
    results = tmp_path / "all results.txt"
    script = ROOT / "scripts" / "v1_5" / "eval" / "pope.sh"
    done = run(script, "my-id", SHAPES, results, "", "--limit", "4", DATA=miniatures, GPUS=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("POPE (Avg. F1), miniature: ")
    assert results.read_text() == ""  # the score of a part is none of the benchmark
    assert (tmp_path / "all results" / "pope-first-4.json").exists()
    assert (miniatures / "pope" / "answers" / "my-id.jsonl").exists()


@pytest.mark.slow
def test_all_benchmarks_end_with_one_table(tmp_path):
    """From nothing: the miniatures are made, twelve benchmarks run with two reductions; under 10 minutes."""
    began = time.monotonic()
    variables = {"RESULTS": tmp_path / "results", "MINIATURES": tmp_path / "data"}
    done = run(ROOT / "eval_all_benchmarks.sh", TOKEN_REDUCTION="none TRIM:-1", **variables)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 600
    report = done.stdout[done.stdout.index("## Miniatures of the shapes world") :]
    table = report[: report.index("Differences to `llava-shapes@none`")].splitlines()
    assert table[2].replace(" ", "") == "||`llava-shapes@none`|`llava-shapes@TRIM_-1`|"
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in table[4:] if line.startswith("|")}
    assert len(rows) >= 12
    assert [cell.strip() for cell in rows["MM-Vet (GPT judge)"]] == ["needs a judge"] * 2
    assert float(rows["GQA (Acc)"][1].split()[0]) > 80
    folder = tmp_path / "results" / "miniatures"
    assert (folder / "report.png").exists()
    assert (folder / "llava-shapes@TRIM_-1.txt").read_text().count("\n") == 10


def test_help_is_the_header():
    done = run(ROOT / "eval_all_benchmarks.sh", "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(
        "Evaluate models on all benchmarks that are in place, and end with one table.\n"
    )


def test_a_script_without_a_benchmark_says_so():
    done = run(ROOT / "scripts" / "v1_5" / "eval" / "run.sh")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no benchmark is named")


@pytest.mark.parametrize("script", ["eval_all_benchmarks.sh", "scripts/v1_5/eval/pope.sh"])
@pytest.mark.parametrize("count", ["two", "0"])
def test_a_wrong_count_is_refused_before_anything_is_made(script, count, tmp_path):
    done = run(ROOT / script, GPUS=count, MINIATURES=tmp_path / "data", RESULTS=tmp_path / "results")
    assert done.returncode == 2
    assert done.stderr == f"error: GPUS is '{count}'; accepted: a whole number of at least 1\n"
    assert list(tmp_path.iterdir()) == []
