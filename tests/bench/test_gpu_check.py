"""The GPU check reports whatever happens to its parts, and counts what it says it counts."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from llava.bench import machine, results
from llava.bench.gpu_check import __main__ as gpu_check
from llava.bench.gpu_check import agreement, supervise, tables, worker
from llava.bench.gpu_check.inference import REDUCTIONS, fitting
from llava.bench.gpu_check.parts import (
    PARTS,
    Part,
    SkippedError,
    find_run,
    require_bytes,
    require_memory,
    require_package,
)
from llava.bench.gpu_check.sizes import TINY
from llava.bench.gpu_check.synchronisations import count_synchronisations, source_line
from llava.bench.random_llava import language_model_bytes, random_assistant
from llava.bench.stages import FIRST_TOKEN

ROOT = Path(__file__).parents[2]
WRONG = "tests.bench.parts_that_go_wrong"
CPU = torch.device("cpu")


def run_worker(function: str, folder: Path) -> list[dict]:
    output = folder / "rows.jsonl"
    worker.main([f"{WRONG}:{function}", str(output), "--size", "tiny", "--device", "cpu"])
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_all_limits_together_are_at_most_12_minutes_and_every_part_has_a_table():
    # Twice what the parts took on an H200, so that a part that hangs does not hold the check up for long.
    assert sum(part.limit_s for part in PARTS) <= 12 * 60
    assert list(tables.TABLES) == [part.name for part in PARTS]
    for part in PARTS:
        assert callable(find_run(part.target))


def test_the_page_about_gpus_has_a_row_for_each_part():
    table = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8").split("**Floors.**")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [part.name for part in PARTS]


def test_a_part_says_its_rows_and_that_it_is_done(tmp_path: Path):
    found = run_worker("finds", tmp_path)
    assert found == [
        {"row": {"device": "cpu", "pictures": TINY.pictures}},
        {"row": {"second": True}},
        {"status": "done"},
    ]


def test_a_part_that_fails_is_reported_with_its_error_and_what_it_had_found(tmp_path: Path):
    row, ended = run_worker("fails", tmp_path)
    assert row == {"row": {"found": 1}}
    assert ended["status"] == "failed"
    assert ended["message"] == "KeyError: 'what is missing'"
    assert ended["traceback"][-1] == ended["message"]
    assert any('"tests/bench/parts_that_go_wrong.py"' in line for line in ended["traceback"])


def test_what_the_machine_lacks_is_one_line_and_no_failure(tmp_path: Path):
    assert run_worker("lacks", tmp_path) == [{"status": "skipped", "message": "peft is not installed"}]
    (tmp_path / "rows.jsonl").unlink()
    (ended,) = run_worker("is_too_large", tmp_path)
    assert ended == {"status": "skipped", "message": "the device's memory does not suffice"}


def test_what_must_not_be_found_fails_with_its_rows(tmp_path: Path):
    row, ended = run_worker("disagrees", tmp_path)
    assert row == {"row": {"found": 1}}
    assert ended == {"status": "failed", "message": "3 of the cases differ"}


def test_a_missing_package_skips_a_part():
    require_package("torch")
    with pytest.raises(SkippedError, match="no_such_package is not installed"):
        require_package("no_such_package")


def test_a_process_is_ended_with_its_children_when_its_time_is_over(tmp_path: Path):
    pids = tmp_path / "pids"
    code = (
        "import os, subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(600)\n"
    )
    assert supervise.run_within([sys.executable, "-c", code], 3, tmp_path / "said", dict(os.environ)) is None
    for pid in map(int, pids.read_text().split()):
        assert is_gone(pid)


def is_gone(pid: int) -> bool:
    """Whether a process ends within seconds; one that nobody has waited for yet counts as ended."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


def test_a_process_in_time_says_how_it_ended(tmp_path: Path):
    code = "import sys; print('a word'); sys.exit(3)"
    said = tmp_path / "said"
    assert supervise.run_within([sys.executable, "-c", code], 60, said, dict(os.environ)) == 3
    assert said.read_text() == "a word\n"


def stand_in(lines: list[dict], ending: int | None):
    """Return a stand-in for a process that writes lines and ends."""

    def run_within(command, limit_s, said, environment):
        Path(command[4]).write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"row": {"half')
        said.write_text("a last word\n")
        return ending

    return run_within


def test_a_part_whose_time_is_over_keeps_its_rows(monkeypatch):
    monkeypatch.setattr(supervise, "run_within", stand_in([{"row": {"found": 1}}], None))
    found = supervise.run_part(Part("slow", "Slow", f"{WRONG}:finds", 7), "full", "cpu")
    assert found["status"] == "timeout"
    assert found["message"] == "ended after its limit of 7 s"
    assert found["results"] == [{"found": 1}]


def test_a_part_that_dies_silently_is_a_failure_with_its_last_words(monkeypatch):
    monkeypatch.setattr(supervise, "run_within", stand_in([{"row": {"found": 1}}], -11))
    found = supervise.run_part(Part("dies", "Dies", f"{WRONG}:dies", 7), "tiny", "cpu")
    assert found["status"] == "failed"
    assert "ended with -11" in found["message"]
    assert found["traceback"] == ["a last word"]
    assert found["results"] == [{"found": 1}]


@pytest.mark.slow
def test_a_part_that_is_killed_in_its_own_process_is_a_failure():
    found = supervise.run_part(Part("dies", "Dies", f"{WRONG}:dies", 60), "tiny", "cpu")
    assert (found["status"], found["results"]) == ("failed", [{"found": 1}])


@pytest.fixture
def outcomes(monkeypatch) -> dict[str, dict]:
    """Outcomes of the parts by name, instead of running them."""
    found: dict[str, dict] = {}

    def run_part(part, size, device):
        return {"seconds": 1.0, "limit_s": part.limit_s, "results": [], **found[part.name]}

    monkeypatch.setattr(gpu_check, "run_part", run_part)
    return found


def test_a_failed_part_is_in_the_results_and_the_others_run(outcomes, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv(machine.COMMIT_VARIABLE, "abc")
    outcomes["training"] = {"status": "failed", "message": "KeyError: 'x'", "traceback": ["KeyError: 'x'"]}
    outcomes["loading"] = {"status": "skipped", "message": "18 GiB of disk are needed, 3 are free"}
    outcomes["agreement"] = {
        "status": "done",
        "results": [
            {
                **{"dtype": "float32", "cases": 20, "kept": 20, "counts": 20, "ids": 19},
                "worst_logit_difference": 4.5e-5,
            }
        ],
    }
    names = "training,loading,agreement"
    assert gpu_check.main([str(tmp_path), "--size", "tiny", "--parts", names, "--device", "cpu"]) == 1
    (path,) = tmp_path.glob("cpu-*-cores-*.json")
    document = json.loads(path.read_text())
    assert document["schema"] == tables.SCHEMA
    assert document["machine"]["commit"] == "abc"
    options = f"--size tiny --parts {names} --device cpu"
    assert document["command"] == f"bash scripts/gpu_check.sh {options}"
    assert [part["status"] for part in document["parts"].values()] == ["failed", "skipped", "done"]
    assert document["parts"]["training"]["traceback"] == ["KeyError: 'x'"]
    page = path.with_suffix(".md").read_text()
    assert "failed: KeyError: 'x'" in page
    assert "skipped: 18 GiB of disk are needed, 3 are free" in page
    assert "| float32 | 20 of 20 | 20 of 20 | 19 of 20 | 4.5e-05 |" in page
    assert page == tables.tables(document)
    assert "training failed in 1.0 s: KeyError: 'x'" in capsys.readouterr().out


def test_results_are_written_after_every_part(outcomes, tmp_path: Path, monkeypatch):
    outcomes["agreement"] = {"status": "done"}
    arguments = [str(tmp_path), "--size", "tiny", "--parts", "agreement,flips", "--device", "cpu"]
    with pytest.raises(KeyError, match="flips"):
        gpu_check.main(arguments)
    (path,) = tmp_path.glob("*.json")
    assert list(json.loads(path.read_text())["parts"]) == ["agreement"]


def test_nothing_fails_where_things_are_only_skipped(outcomes, tmp_path: Path):
    outcomes["loading"] = {"status": "skipped", "message": "no room"}
    assert gpu_check.main([str(tmp_path), "--parts", "loading", "--device", "cpu"]) == 0
    outcomes["loading"] = {"status": "timeout", "message": "ended"}
    assert gpu_check.main([str(tmp_path), "--parts", "loading", "--device", "cpu"]) == 1


def test_an_unknown_part_is_one_sentence(capsys):
    assert gpu_check.main(["--parts", "agreement,everything"]) == 2
    assert "no part 'everything'; accepted: agreement, flips" in capsys.readouterr().err


def test_what_does_not_fit_is_one_row_and_the_next_one_runs():
    def rows():
        yield {"found": 1}
        raise torch.OutOfMemoryError

    found = list(fitting({"batch": 32}, CPU, rows()))
    assert found == [{"found": 1}, {"batch": 32, "skipped": "the device's memory does not suffice"}]


def test_what_a_part_needs_is_known_before_it_runs():
    assert language_model_bytes(TINY.first_language_model, torch.float16) == 2 * sum(
        weight.numel()
        for name, weight in random_assistant(TINY.first_language_model, TINY.clip).model.named_parameters()
        if "vision_tower" not in name and "mm_projector" not in name
    )
    require_memory(CPU, 1)
    with pytest.raises(SkippedError, match=r"4 GiB of disk are needed, 1 are free"):
        require_bytes("disk", 4 * 2**30, 2**30)

    def rows():
        require_memory(CPU, 2.0**60)
        yield {}

    (row,) = fitting({"model": "13b"}, CPU, rows())
    assert row["model"] == "13b" and "GiB of cpu memory are needed" in row["skipped"]


def test_synchronisations_are_not_counted_where_there_is_no_cuda():
    assert count_synchronisations(CPU, lambda: pytest.fail("it ran")) is None


def test_a_line_is_named_from_the_repository_or_from_its_package():
    assert source_line(str(ROOT / "llava" / "assistant.py"), 7) == "llava/assistant.py:7"
    assert source_line("/x/lib/site-packages/transformers/a.py", 7) == "transformers/a.py:7"
    assert source_line("/x/somewhere.py", 7) == "somewhere.py:7"


def test_all_reference_cases_agree_on_a_cpu_in_float32():
    cases = agreement.compare_cases(CPU, "float32")
    assert len(cases) == 20
    assert all(case.kept and case.counts and case.ids for case in cases)
    assert max(case.logits for case in cases) < 1e-3


def test_the_tables_in_the_docs_are_what_the_command_makes_of_the_committed_results():
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    text = tables.generated(sorted((ROOT / "docs" / "benchmarks").glob("*.json")))
    assert page == results.put_between_marks(page, text)


def test_tables_are_put_between_the_marks_of_a_page(tmp_path: Path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{results.BEGIN}\nold\n{results.END}\nafter\n")
    assert tables.main(["--into", str(page)]) == 0
    assert page.read_text() == f"before\n{results.BEGIN}\n\nNot measured yet.\n\n{results.END}\nafter\n"
    page.write_text("no marks")
    assert tables.main(["--into", str(page)]) == 2
    assert "the page has no" in capsys.readouterr().err


def test_results_of_another_schema_are_refused(tmp_path: Path, capsys):
    (tmp_path / "results.json").write_text('{"schema": 99}')
    assert tables.main([str(tmp_path / "results.json")]) == 2
    assert "has results of schema 99; accepted: 1" in capsys.readouterr().err


OPTIONAL = (
    *("gradio", "fastapi", "uvicorn", "httpx", "anyio", "matplotlib", "openpyxl", "openai", "peft"),
    *(
        "deepspeed",
        "bitsandbytes",
        "torchvision",
        "tensorboard",
        "wandb",
        "tqdm.rich",
        "timm",
        "requests_mock",
    ),
)


@pytest.mark.slow
def test_no_part_imports_what_a_machine_may_lack():
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}))\n" + "\n".join(
        f"import {part.target.partition(':')[0]}" for part in PARTS
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "scripts/gpu_check.sh", str(tmp_path), "--size", "tiny", "--device", "cpu"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    parts = document["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {part.name: "done" for part in PARTS}
    assert path.with_suffix(".md").read_text() == tables.tables(document)

    for name, part in parts.items():  # what was found before a part was ended has its table too
        for count in range(len(part["results"])):
            ended = {**part, "status": "timeout", "message": "ended", "results": part["results"][:count]}
            assert "timeout: ended" in tables.tables({**document, "parts": {name: ended}})

    exact = parts["agreement"]["results"][0]
    assert [exact[name] for name in ("cases", "kept", "counts", "ids")] == [20] * 4
    assert parts["flips"]["results"][0]["from_cpu"] == {"patches": 0, "pairs": 0, "answers": 0}
    assert {row["synchronisations"] for row in parts["selection"]["results"]} == {None}
    _, *measured = parts["inference"]["results"]
    assert [(row["batch"], row["reduction"]) for row in measured] == [
        (batch, reduction) for batch in TINY.batches for reduction in REDUCTIONS
    ]
    for row in measured:
        assert {*FIRST_TOKEN} - {*row["stages"]} == (set() if "TRIM" in row["reduction"] else {"text"})
        assert row["cache_mib"] > 0
    tokens = {row["reduction"]: row["visual_tokens"] for row in measured}
    assert (tokens["none"], tokens["TRIM:0.21"], tokens["TRIM:64"], tokens["Pool:64"]) == (100, 22, 65, 64)
    assert [row["visual_tokens"] for row in parts["training"]["results"]] == [100, 22]
    assert parts["loading"]["results"][0]["load_s"] > 0
    assert [row["questions"] for row in parts["bundled"]["results"]] == [TINY.questions] * 4
    assert parts["bundled"]["results"][1]["differing"] == []
