"""A benchmark from question to score: what a result says, and what is said of failures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Mark
from llava.eval.benchmarks.gqa import GQA
from llava.eval.benchmarks.llava_bench import LLAVA_BENCH
from llava.eval.benchmarks.mmbench import MMBENCH
from llava.eval.benchmarks.mmvet import MMVET
from llava.eval.benchmarks.pope import POPE
from llava.eval.benchmarks.vqav2 import VQAV2
from llava.eval.evaluate import Choices, describe_scores, evaluate, histogram, summarize
from llava.eval.files import write_score
from llava.eval.judge import Judge
from llava.eval.processes import Processes
from tests.eval.judge_server import Raw, serving

ALONE = Processes()


@pytest.fixture
def choices(miniatures, tmp_path, request):
    name = request.node.name.replace("[", "_").replace("]", "")
    return Choices(miniatures, name, "shapes", tmp_path / "results" / "llava-v1.5.txt")


def test_a_result_says_what_was_measured_and_how(shapes, choices):
    result = evaluate(GQA, shapes, choices, ALONE)
    path = choices.results_file.parent / "llava-v1.5" / "gqa.json"
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    score = result["score"]
    assert score["name"] == "accuracy"
    assert score["low"] < score["value"] <= score["high"] <= 100
    assert score["value"] > 80  # the model really answers
    assert result["metrics"].keys() == {"accuracy", "open", "binary"}
    assert (result["questions"], result["failures"], result["miniature"]) == (30, 0, True)
    assert result["settings"]["reduction"] == "TRIM:-1"
    assert result["settings"]["template"] == "vicuna_v1"
    assert result["settings"]["generation"]["temperature"] == 0
    cost = result["cost"]
    assert cost["patches"] == 256
    assert 10 < cost["visual_tokens"] < 60
    assert sum(bin["questions"] for bin in cost["visual_tokens_histogram"]) == 30
    assert cost["milliseconds"]["total_ms"] > cost["milliseconds"]["vision_ms"] > 0
    assert result["config"]["mm_vision_tower"] == "clip-shapes"
    assert len(result["versions"]["code"]) == 16
    assert len(result["marks"]) == 30
    assert choices.results_file.read_text() == f"GQA (Acc)\t{score['value']:.2f}\n"
    exported = json.loads((choices.data / "gqa" / "data" / "testdev_balanced_predictions.json").read_text())
    assert len(exported) == 30
    assert "GQA (Acc), miniature: " in summarize(result)
    assert "30 questions; " in summarize(result)


def test_a_limited_run_exports_nothing_and_says_how_many_there_are(shapes, choices):
    result = evaluate(VQAV2, shapes, replace(choices, limit=3), ALONE)
    assert (result["questions"], result["questions_available"], result["export"]) == (3, 24, None)
    written = choices.results_file.parent / "llava-v1.5"
    assert [path.name for path in written.iterdir()] == ["vqav2-first-3.json"]  # no whole run's result
    assert not choices.results_file.exists()
    assert len(result["marks"]) == 3


def test_a_limit_beyond_the_questions_is_a_whole_run(shapes, choices):
    result = evaluate(VQAV2, shapes, replace(choices, limit=24), ALONE)
    assert result["export"] is not None
    assert (choices.results_file.parent / "llava-v1.5" / "vqav2.json").exists()
    assert choices.results_file.exists()


def test_a_limit_cuts_no_orders_of_options_apart(shapes, choices):
    questions = MMBENCH.load(choices.data / "mmbench", MMBENCH.splits[0])
    rounds = [question.extra["round_id"] for question in questions]
    assert rounds[:3] == [0, 1, 2]
    result = evaluate(MMBENCH, shapes, replace(choices, limit=2), ALONE)
    assert result["questions"] == rounds.index(0, 1)
    assert (choices.results_file.parent / "llava-v1.5" / "mmbench-first-2.json").exists()


def test_a_run_all_of_whose_questions_failed_has_no_score(shapes, choices, miniatures):
    questions = GQA.load(miniatures / "gqa", "testdev_balanced")
    broken = replace(GQA, load=lambda *_: [replace(q, image=Path("/none.jpg")) for q in questions[:3]])
    result = evaluate(broken, shapes, choices, ALONE)
    assert (result["score"], result["failures"]) == (None, 3)
    assert not choices.results_file.exists()
    assert summarize(result).startswith("GQA (Acc), miniature: no score; 3 questions; 3 failed, the first: ")


def test_failures_count_as_wrong_and_are_shown(shapes, choices, miniatures, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "gqa").symlink_to(miniatures / "gqa")
    questions = GQA.load(miniatures / "gqa", "testdev_balanced")
    broken = replace(
        GQA, load=lambda *_: [replace(questions[0], image=tmp_path / "none.jpg"), *questions[1:4]]
    )
    result = evaluate(broken, shapes, replace(choices, data=data), ALONE)
    assert result["failures"] == 1
    assert result["miniature"] is False  # there is no stamp in this folder
    assert result["first_failures"][0].startswith(f"{questions[0].id}: there is no image file")
    assert result["marks"][0][1] == 0
    assert result["score"]["value"] <= 75
    assert "1 failed, the first: " in summarize(result)


def test_without_public_answers_the_submission_is_named(shapes, choices):
    result = evaluate(VQAV2, shapes, replace(choices, split="test2015"), ALONE)
    assert result["score"] is None
    assert "for submission: " in summarize(result)
    assert len(json.loads(Path(result["export"]).read_text())) == 36
    assert (choices.results_file.parent / "llava-v1.5" / "vqav2-test2015.json").exists()
    assert not choices.results_file.exists()


def test_what_is_missing_is_said_with_the_folder(shapes, choices, tmp_path):
    with pytest.raises(MissingFileError, match=r"gqa is not in place: .*gqa lacks llava_gqa_testdev"):
        evaluate(GQA, shapes, replace(choices, data=tmp_path), ALONE)


def test_an_unknown_split_is_refused_with_the_accepted_ones(shapes, choices):
    with pytest.raises(UserError, match="vqav2 has no split 'dev'; accepted: test-dev2015, test2015"):
        evaluate(VQAV2, shapes, replace(choices, split="dev"), ALONE)
    with pytest.raises(UserError, match="pope has no split 'dev'; accepted: none, it has only one"):
        evaluate(POPE, shapes, replace(choices, split="dev"), ALONE)


def test_a_judge_scores_what_only_a_judge_can(shapes, choices):
    without = evaluate(MMVET, shapes, choices, ALONE)
    assert (without["score"], without["judge"]) == (None, "needs a judge")
    with serving(lambda text, before: "0.5" if "on the sign" in text.splitlines()[-1] else "1.0") as server:
        judge = Judge("a-judge", server.url, waits_s=())
        result = evaluate(MMVET, shapes, replace(choices, judge=judge), ALONE)
    questions = MMVET.load(choices.data / "mm-vet", "")
    halves = sum("on the sign" in question.text for question in questions)
    assert 0 < halves < 24
    assert result["score"]["value"] == pytest.approx(100 * (24 - halves / 2) / 24)
    assert result["judge"]["judge"] == "a-judge"
    assert len(result["judge"]["prompt_hash"]) == 64
    assert result["judge"]["failures"] == 0
    assert json.loads(Path(result["export"]).read_text()).keys() == {f"v1_{item.id}" for item in questions}


def test_a_run_without_a_judge_keeps_what_a_judge_said_of_the_same_answers(shapes, choices, caplog):
    with serving(lambda text, before: "1.0") as server:
        judged = replace(choices, judge=Judge("a-judge", server.url, waits_s=()))
        evaluate(MMVET, shapes, judged, ALONE)
        exported = choices.data / "mm-vet" / "results" / f"{choices.run_id}.json"
        exported.unlink()
        again = evaluate(MMVET, shapes, choices, ALONE)
        assert again["score"]["value"] == 100
        assert again["export"] == str(exported)
        assert len(json.loads(exported.read_text())) == 24
        assert "mmvet: kept what a-judge said of these answers" in caplog.text
        other = replace(choices, judge=Judge("b/judge", server.url, waits_s=()))
        assert evaluate(MMVET, shapes, other, ALONE)["judge"]["judge"] == "b/judge"
        evaluate(MMVET, shapes, judged, ALONE)
        assert len(server.requests) == 2 * 24  # each judge was asked once
        path = choices.results_file.parent / "llava-v1.5" / "mmvet.json"
        kept = [json.loads(file.read_text())["judge"]["judge"] for file in path.parent.glob("mmvet.json.*")]
        assert sorted(kept) == ["a-judge", "b/judge"]
    failing = replace(choices, judge=Judge("b/judge", "http://127.0.0.1:9", waits_s=()))
    (choices.data / "mm-vet" / "reviews" / f"{choices.run_id}-b_judge.jsonl").unlink()
    assert evaluate(MMVET, shapes, failing, ALONE)["judge"].startswith("failed")
    assert (
        json.loads(path.read_text())["judge"]["judge"] == "a-judge"
    )  # one that fails takes the place of none
    names = {path.name for path in (choices.data / "mm-vet" / "reviews").glob(f"{choices.run_id}*")}
    assert names == {f"{choices.run_id}-a-judge.jsonl", f"{choices.run_id}-b_judge.jsonl"}
    changed = replace(choices, generation={"max_new_tokens": 3})
    assert evaluate(MMVET, shapes, changed, ALONE)["score"] is None  # other answers


def test_a_result_of_other_settings_is_kept_aside(shapes, choices, caplog):
    some = replace(choices, limit=3)
    evaluate(VQAV2, shapes, some, ALONE)
    path = choices.results_file.parent / "llava-v1.5" / "vqav2-first-3.json"
    first = path.read_text()
    evaluate(VQAV2, shapes, replace(some, generation={"max_new_tokens": 3}), ALONE)
    evaluate(VQAV2, shapes, replace(some, generation={"max_new_tokens": 3}), ALONE)  # takes its own place
    assert path.with_name("vqav2-first-3.json.1").read_text() == first
    assert len(list(path.parent.iterdir())) == 2
    assert f"{path} is of other settings or another judge; kept: {path}.1" in caplog.text


def test_a_judge_that_refuses_leaves_the_answers_and_says_why(shapes, choices, caplog):
    with serving(lambda text, before: Raw(401)) as server:
        judge = Judge("a-judge", server.url, key="secret", waits_s=())
        result = evaluate(LLAVA_BENCH, shapes, replace(choices, judge=judge), ALONE)
    assert result["score"] is None
    assert "status 401" in result["judge"]
    assert result["questions"] == 24
    assert "secret" not in caplog.text + json.dumps(result)
    assert summarize(result).startswith("LLaVA-Bench (GPT judge), miniature: failed: the judge 'a-judge' at ")


def test_the_headline_is_the_first_metric():
    marks = [Mark(str(number), float(number % 4 > 0), "random", "yes") for number in range(40)]
    described = describe_scores(POPE, marks)
    # 30 of 40 yes are found and nothing else: precision 1, recall 3/4, F1 = 2 x 0.75 / 1.75.
    assert described["score"]["name"] == "f1"
    assert described["score"]["value"] == pytest.approx(100 * 1.5 / 1.75)
    assert described["metrics"]["random recall"] == 75
    assert describe_scores(POPE, []) == {"score": None, "metrics": {}}


def test_a_histogram_covers_all_numbers_once():
    assert histogram([]) == []
    assert histogram([7, 7]) == [{"from": 7, "to": 7, "questions": 2}]
    bins = histogram(list(range(1, 101)))
    assert len(bins) <= 16
    assert (bins[0]["from"], sum(item["questions"] for item in bins)) == (1, 100)


def test_a_score_takes_the_place_of_an_earlier_one(tmp_path):
    path = tmp_path / "all.txt"
    write_score(path, "POPE (Avg. F1)", 1)
    write_score(path, "TextVQA (Acc)", 2)
    write_score(path, "POPE (Avg. F1)", 3.456)
    assert path.read_text() == "TextVQA (Acc)\t2.00\nPOPE (Avg. F1)\t3.46\n"


def test_a_score_takes_the_place_of_none_of_another_model(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text("model A\nPOPE\t85.90\nmodel B\nPOPE\t86.10\nGQA\t1.00\n")
    write_score(path, "POPE", 50)
    assert path.read_text() == "model A\nPOPE\t85.90\nmodel B\nGQA\t1.00\nPOPE\t50.00\n"


def test_processes_lose_no_score_of_each_other(tmp_path):
    path = tmp_path / "all.txt"
    code = "import sys; from pathlib import Path; from llava.eval.files import write_score\n"
    code += "for n in range(20): write_score(Path(sys.argv[1]), f'{sys.argv[2]}{n}', n)"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "abc"]
    assert [writer.wait(timeout=100) for writer in writers] == [0, 0, 0]
    assert len(path.read_text().splitlines()) == 60
