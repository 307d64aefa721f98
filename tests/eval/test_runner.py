"""Asking: what is written; nothing is lost, asked twice or reused wrongly; batches do not matter."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from PIL import Image

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.eval.benchmark import Question, Response
from llava.eval.benchmarks import BENCHMARKS
from llava.eval.data_check import choose_split
from llava.eval.journal import Journal
from llava.eval.processes import Processes
from llava.eval.runner import Plan, answer_record, ask_questions, request_for, share_of, short_id
from tests.conftest import count_encodings

ALONE = Processes()
GREEDY = Generation(max_new_tokens=8)
GQA = BENCHMARKS[0]


@pytest.fixture
def plan(tmp_path):
    return Plan("test", tmp_path / "answers" / "run.jsonl", "model", "vicuna_v1", GREEDY)


@pytest.fixture
def questions(miniatures):
    return GQA.load(miniatures / "gqa", "testdev_balanced")[:9]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_records_are_llavas_in_the_order_of_the_questions(shapes, plan, questions):
    asked = ask_questions(questions, shapes, plan, ALONE)
    records = lines_of(plan.answers_file)
    assert [list(record) for record in records] == [
        ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    ] * len(questions)
    assert [record["question_id"] for record in records] == [question.id for question in questions]
    assert [record["prompt"] for record in records] == [question.text for question in questions]
    assert [record["text"] for record in records] == [response.text for response in asked.responses]
    assert all(record["model_id"] == "model" and record["metadata"] == {} for record in records)
    assert len({record["answer_id"] for record in records}) == len(questions)
    assert asked.entries[0].cost.visual_tokens < 256


def test_keys_of_a_benchmark_stand_where_llava_has_them():
    question = Question(
        3, "Q", prompt="P", extra={"option_char": ["B", "A"], "round_id": 1, "options": ["x", "y"]}
    )
    record = answer_record(Response(question, "A"), "model")
    assert list(record) == [
        *("question_id", "round_id", "prompt", "text", "options", "option_char"),
        *("answer_id", "model_id", "metadata"),
    ]
    assert record["prompt"] == "P"


def test_ids_look_like_llavas_and_repeat():
    assert short_id("a", 1) == short_id("a", 1) != short_id("a", 2)
    assert len(short_id("a")) == 22
    assert short_id("a").isalnum()


def test_the_prompt_is_llavas_with_the_image_in_front(shapes, plan):
    question = Question(1, "What is <image> it?", Image.new("RGB", (8, 8)), clip_text="it")
    request = request_for(question, plan)
    rendered = shapes.render(request)
    assert rendered.endswith(" USER: <image>\nWhat is  it? ASSISTANT:")
    assert request.clip_text == "it"
    text_only = shapes.render(request_for(replace(question, image=None), plan))
    assert "<image>" not in text_only


def test_an_image_is_encoded_once_wherever_its_questions_stand(shapes, plan, questions, monkeypatch):
    encoded = count_encodings(shapes, monkeypatch)
    scattered = [question for start in range(3) for question in questions[start::3]]
    ask_questions(scattered, shapes, replace(plan, batch_size=2), ALONE)
    assert sum(encoded) == len({question.image for question in questions}) == 3
    assert [record["question_id"] for record in lines_of(plan.answers_file)] == [
        item.id for item in scattered
    ]


def test_a_run_goes_on_where_it_was_and_asks_nothing_twice(shapes, plan, questions, tmp_path, monkeypatch):
    whole = replace(plan, answers_file=tmp_path / "whole" / "run.jsonl")
    ask_questions(questions, shapes, whole, ALONE)
    ask_questions(questions, shapes, replace(plan, limit=4), ALONE)
    assert len(lines_of(plan.answers_file)) == 4
    journal = Journal.beside(plan.answers_file).folder / "rank-0.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])  # killed while the fourth line was written
    asked = []

    def remember(self, requests, *more):
        return answer_all(self, (asked.append(request) or request for request in requests), *more)

    answer_all = Assistant.answer_all
    monkeypatch.setattr(Assistant, "answer_all", remember)
    ask_questions(questions, shapes, plan, ALONE)
    assert len(asked) == len(questions) - 3
    assert plan.answers_file.read_bytes() == whole.answers_file.read_bytes()
    ask_questions(questions, shapes, replace(plan, limit=2), ALONE)  # and a smaller run takes nothing away
    assert plan.answers_file.read_bytes() == whole.answers_file.read_bytes()


def test_answers_of_another_reduction_are_not_reused(shapes, plan, questions, caplog):
    ask_questions(questions[:3], shapes, plan, ALONE)
    before = lines_of(plan.answers_file)
    shapes.model.set_token_reduction("none")
    try:
        with caplog.at_level(logging.WARNING):
            asked = ask_questions(questions[:3], shapes, plan, ALONE)
    finally:
        shapes.model.set_token_reduction("TRIM:-1")
    assert asked.entries[0].cost.visual_tokens == 256
    assert "other settings (text_encoder, reduction)" in caplog.text
    assert lines_of(plan.answers_file.with_name("run.jsonl.1")) == before


@pytest.mark.parametrize("change", ["template", "generation"])
def test_answers_of_other_settings_are_not_reused(change, shapes, plan, questions, caplog):
    ask_questions(questions[:1], shapes, plan, ALONE)
    other = {"template": "llava_v0", "generation": Generation(max_new_tokens=2)}[change]
    with caplog.at_level(logging.WARNING):
        ask_questions(questions[:1], shapes, replace(plan, **{change: other}), ALONE)
    assert f"other settings ({change})" in caplog.text


def test_only_questions_that_have_changed_are_asked_anew(shapes, plan, questions, tmp_path, monkeypatch):
    image = tmp_path / "image.jpg"
    shutil.copy(questions[0].image, image)
    asked = [replace(questions[0], image=image), *questions[3:6]]
    first = ask_questions(asked, shapes, plan, ALONE)
    shutil.copy(questions[6].image, image)  # another picture of the same name
    encoded = count_encodings(shapes, monkeypatch)
    ask_questions(asked, shapes, plan, ALONE)
    assert sum(encoded) == 1
    changed = [asked[0], replace(asked[1], text="What color is the star?"), *asked[2:]]
    again = ask_questions(changed, shapes, plan, ALONE)
    assert sum(encoded) == 2
    assert again.responses[2:] == first.responses[2:]
    assert again.settings["questions"] != first.settings["questions"]


def test_a_bad_image_fails_its_question_and_is_tried_again_by_the_next_run(shapes, plan, questions, tmp_path):
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"no image")
    asked = [replace(questions[0], image=broken), replace(questions[1], image=missing), questions[2]]
    first = ask_questions(asked, shapes, plan, ALONE)
    assert [response.error is None for response in first.responses] == [False, False, True]
    records = lines_of(plan.answers_file)
    assert "not an image in a known format" in records[0]["metadata"]["error"]
    assert f"there is no image file {missing}" in records[1]["metadata"]["error"]
    assert records[2]["metadata"] == {}
    shutil.copy(questions[1].image, missing)
    second = ask_questions(asked, shapes, plan, ALONE)
    assert [response.error is None for response in second.responses] == [False, True, True]
    assert second.responses[2] == first.responses[2]


def test_processes_share_the_questions_by_images():
    images = ["a.png", "b.png", None, "a.png", None, "c.png"]
    questions = [Question(number, "", image) for number, image in enumerate(images)]
    shares = [share_of(questions, range(6), Processes(rank, 2)) for rank in range(2)]
    assert shares == [[0, 3, 2, 5], [1, 4]]


def test_what_another_number_of_processes_answered_counts(shapes, plan, questions):
    """Journals of ranks 0 and 1 of an earlier run, continued by one process."""
    settings = ask_questions(questions[:1], shapes, plan, ALONE).settings
    journal = Journal.beside(plan.answers_file)
    (journal.folder / "rank-0.jsonl").rename(journal.folder / "rank-1.jsonl")
    again = ask_questions(questions[:1], shapes, plan, ALONE)
    assert again.settings == settings
    assert not (journal.folder / "rank-0.jsonl").exists()


def command(miniatures, run_id, *more, launcher=("-m", "llava.eval")):
    return [
        *(sys.executable, *launcher, "gqa", "--data", str(miniatures), "--id", run_id),
        *("--results-file", str(miniatures / "results" / f"{run_id}.txt"), *more),
    ]


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(miniatures):
    answers = miniatures / "gqa" / "answers" / "llava_gqa_testdev_balanced"
    subprocess.run(command(miniatures, "whole"), check=True, capture_output=True, timeout=300)
    journal = answers / "killed" / "merge.jsonl.journal" / "rank-0.jsonl"
    process = subprocess.Popen(command(miniatures, "killed", "--batch-size", "1"), stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") >= 5):
        assert time.monotonic() < give_up
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = journal.read_bytes().count(b"\n")
    assert 5 <= written < 30
    subprocess.run(command(miniatures, "killed"), check=True, capture_output=True, timeout=300)
    whole, killed = (lines_of(answers / name / "merge.jsonl") for name in ("whole", "killed"))
    same = ("question_id", "prompt", "text", "metadata")
    assert [[line[key] for key in same] for line in killed] == [[line[key] for key in same] for line in whole]
    assert journal.read_bytes().count(b"\n") == 30  # none twice, none missing


LAUNCHERS = {
    "torchrun": "torch.distributed.run --standalone --nproc_per_node 2",
    "accelerate": "accelerate.commands.accelerate_cli launch --multi_gpu --num_processes 2 --num_machines 1 "
    "--mixed_precision no --dynamo_backend no",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_answer_as_one(name, miniatures):
    subprocess.run(command(miniatures, "one"), check=True, capture_output=True, timeout=300)
    launcher = ("-m", *LAUNCHERS[name].split(), "-m", "llava.eval")
    done = subprocess.run(
        command(miniatures, f"two-{name}", launcher=launcher),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.count("GQA (Acc)") == 1  # the first process alone scores
    answers = miniatures / "gqa" / "answers" / "llava_gqa_testdev_balanced"
    one, two = ((answers / name / "merge.jsonl").read_text() for name in ("one", f"two-{name}"))
    assert [json.loads(line)["text"] for line in one.splitlines()] == [
        json.loads(line)["text"] for line in two.splitlines()
    ]
    ranks = sorted(path.name for path in (answers / f"two-{name}" / "merge.jsonl.journal").glob("rank-*"))
    assert ranks == ["rank-0.jsonl", "rank-1.jsonl"]
    results = [
        json.loads((miniatures / "results" / name / "gqa.json").read_text())
        for name in ("one", f"two-{name}")
    ]
    assert results[0]["score"] == results[1]["score"]
    assert results[1]["run"]["processes"] == 2


@pytest.mark.slow
def test_processes_that_are_started_here_end_with_the_sentence_and_no_more(miniatures):
    done = subprocess.run(
        command(miniatures, "half", "--split", "dev", launcher=("-m", "llava.eval.launch", "2")),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: gqa has no split 'dev'; accepted: testdev_balanced"] * len(errors) != []
    assert "Traceback" not in done.stderr and "FAILED" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_batches_answer_as_each_question_alone(benchmark, shapes, miniatures, tmp_path):
    questions = benchmark.load(miniatures / benchmark.folder, choose_split(benchmark, None, miniatures))
    generation = replace(benchmark.generation, max_new_tokens=24)
    answers = []
    for batch_size in (1, 16):
        plan = Plan("", tmp_path / f"{batch_size}.jsonl", "m", benchmark.template, generation, batch_size)
        answers.append(
            [response.text for response in ask_questions(questions, shapes, plan, ALONE).responses]
        )
    assert answers[0] == answers[1]
