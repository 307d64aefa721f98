"""LLaVA's commands for reviews: a judge compares two files of answers, and files of reviews are summed up."""

import json

import pytest

from llava.eval import eval_gpt_review_bench, summarize_gpt_review
from llava.eval.summarize_gpt_review import describe
from tests.eval.judge_server import Raw, serving


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command over two questions with a judge, and returns its exit code and what the judge got."""
    questions = [
        {"question_id": 5, "image": "a.jpg", "text": "Who?", "category": "conv"},
        {"question_id": 6, "image": "b.jpg", "text": "Why?", "category": "complex"},
    ]
    write_lines(tmp_path / "questions.jsonl", questions)
    write_lines(tmp_path / "context.jsonl", [{"image": f"{x}.jpg", "caption": f"Scene {x}."} for x in "ab"])
    for name in ("gpt4", "own"):
        answers = [
            {"question_id": key, "text": f"{name} says {key}", "answer_id": f"{name}{key}"} for key in (5, 6)
        ]
        write_lines(tmp_path / f"{name}.jsonl", answers)
    rules = {
        f"llava_bench_{name}": {"role": "Writer", "prompt": f"Rate {name}."} for name in ("conv", "complex")
    }
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(answer, *arguments):
        files = {"-q": "questions", "-c": "context", "-o": "review"}
        options = [x for flag, name in files.items() for x in (flag, str(tmp_path / f"{name}.jsonl"))]
        options += ["-a", str(tmp_path / "gpt4.jsonl"), str(tmp_path / "own.jsonl")]
        options += ["-r", str(tmp_path / "rule.json")]
        with serving(answer) as server:
            monkeypatch.setenv("OPENAI_BASE_URL", server.url)
            return eval_gpt_review_bench.main([*options, *arguments]), server.requests

    return run


def test_reviews_are_llavas_records_and_summed_up(command, tmp_path, capsys):
    code, requests = command(lambda text, _: "8 6\nGood." if "Who?" in text else "10, 9\nBetter.")
    assert code == 0
    assert {(request["model"], request["max_tokens"]) for request in requests} == {("gpt-4-0613", 1024)}
    records = [json.loads(line) for line in (tmp_path / "review.jsonl").read_text().splitlines()]
    first, second = sorted(records, key=lambda record: record["id"])
    assert first.pop("metadata")["judge"] == "gpt-4-0613"
    assert first == {
        "id": 1,
        "question_id": 5,
        "answer1_id": "gpt45",
        "answer2_id": "own5",
        "category": "conv",
        "content": "8 6\nGood.",
        "tuple": [8.0, 6.0],
    }
    assert (second["id"], second["tuple"]) == (2, [10.0, 9.0])
    asked = next(r["messages"][-1]["content"] for r in requests if "Who?" in r["messages"][-1]["content"])
    assert asked == (
        "[Context]\nScene a.\n\n[Question]\nWho?\n\n[Writer 1]\ngpt4 says 5\n\n[End of Writer 1]\n\n"
        "[Writer 2]\nown says 5\n\n[End of Writer 2]\n\n[System]\nRate conv."
    )
    capsys.readouterr()
    assert summarize_gpt_review.main(["-f", str(tmp_path / "review.jsonl")]) == 0
    # All: means 9 and 7.5; complex: 10 and 9; conv: 8 and 6.
    assert (
        capsys.readouterr().out
        == "review\nall 83.3 90.0 75.0\ncomplex 90.0 100.0 90.0\nconv 75.0 80.0 60.0\n"
    )


def test_what_the_judge_left_out_is_said_and_asked_for_by_the_next_run(command, capsys):
    code, _ = command(lambda text, _: "well" if "Who?" in text else "10, 9")
    assert code == 2
    assert "error: 1 of 2 answers have got no review; run again" in capsys.readouterr().err
    code, requests = command(lambda *_: "8 6", "--max-tokens", "99")
    assert code == 0
    assert [request["max_tokens"] for request in requests] == [99]


def test_an_answer_that_failed_is_not_sent(command, tmp_path, capsys):
    failed = {"question_id": 5, "text": "", "metadata": {"error": "no such image"}}
    write_lines(tmp_path / "own.jsonl", [failed, {"question_id": 6, "text": "So.", "metadata": {}}])
    code, requests = command(lambda *_: "8 6")
    assert code == 0
    assert len(requests) == 1
    assert "Why?" in requests[0]["messages"][-1]["content"]
    assert capsys.readouterr().out.splitlines() == [
        f"1 reviews by gpt-4-0613 in {tmp_path / 'review.jsonl'}",
        "1 answers failed and were not sent; summarize_gpt_review leaves them out",
    ]


def test_ids_may_be_numbers_or_texts(command, tmp_path):
    write_lines(tmp_path / "own.jsonl", [{"question_id": key, "text": "I"} for key in ("5", "6")])
    code, requests = command(lambda *_: "8 6")
    assert (code, len(requests)) == (0, 2)


def test_another_judge_reviews_everything(command, tmp_path):
    command(lambda *_: "8 6")
    _, requests = command(lambda *_: "8 6", "--judge-model", "qwen")
    assert [request["model"] for request in requests] == ["qwen"] * 2
    assert (tmp_path / "review.jsonl.1").exists()


def test_what_cannot_work_is_one_sentence(command, tmp_path, capsys):
    def complaint(answer, *arguments):
        assert command(answer, *arguments)[0] == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "status 401" in complaint(lambda *_: Raw(401))
    assert "--max-tokens" in complaint(lambda *_: "8 6", "--max-tokens", "0")
    assert "would overwrite" in complaint(lambda *_: "8 6", "--output", str(tmp_path / "own.jsonl"))
    write_lines(tmp_path / "own.jsonl", [{"question_id": 5, "text": "I"}])
    assert "question 6 has no answer in" in complaint(lambda *_: "8 6")


def published(*tuples, category="conv"):
    return [{"question_id": i, "category": category, "tuple": list(pair)} for i, pair in enumerate(tuples)]


def test_unreadable_reviews_of_published_files_are_averaged_in(tmp_path):
    path = write_lines(tmp_path / "gpt4_text_run.jsonl", published((8, 7), (-1, -1), (9, 9.5)))
    # Means: 16 / 3 = 5.333 and 15.5 / 3 = 5.167; 5.167 / 5.333 = 0.96887.
    assert describe(path) == "run\nall 96.9 53.3 51.7\nconv 96.9 53.3 51.7"


def test_means_are_rounded_before_they_are_divided(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", published((0.001, 0.001), (0, 0.001), (0, 0.002)))
    # 0.00033 and 0.00133 become 0.0 and 0.001; a reference without points divides nothing.
    assert describe(path) == "r\nall 0.0 0.0 0.0\nconv 0.0 0.0 0.0"


def test_questions_can_be_ignored(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", published((8, 8), (10, 5)))
    assert describe(path, ["0"]) == "r\nall 50.0 100.0 50.0\nconv 50.0 100.0 50.0"


@pytest.fixture
def summary(tmp_path, capsys):
    """Returns the names of the files that the command sums up."""

    def run(*arguments):
        assert summarize_gpt_review.main(list(arguments)) == 0
        return [line for line in capsys.readouterr().out.splitlines() if len(line.split()) == 1]

    return run


def test_files_are_found_by_their_names_or_their_folders(tmp_path, summary):
    names = ("gpt4_text_b-0613", "gpt4_text_a", "reviews_c", "review_d", "answers")
    for folder in ("results", "reviews"):
        for name in names:
            write_lines(tmp_path / folder / f"{name}.jsonl", published((8, 7)))
    results, reviews = (str(tmp_path / name) for name in ("results", "reviews"))
    # The label leaves out "gpt4_text_"; the test's own folder has no "review" in its name.
    assert summary("-d", results) == ["a", "b-0613", "review_d", "reviews_c"]
    assert summary("-d", reviews) == ["answers", "a", "b-0613", "review_d", "reviews_c"]
    assert summary("-d", results, "-v", "0613") == ["b-0613"]
    assert summary("-d", results, "-v", "0314") == ["a", "review_d", "reviews_c"]
    assert summary("-d", results, "-s", "review", "c") == ["reviews_c"]
    assert summary("-f", f"{results}/answers.jsonl") == ["answers"]


def test_what_cannot_be_summed_up_is_one_sentence(tmp_path, capsys):
    write_lines(tmp_path / "tuple.jsonl", [{"question_id": 3, "tuple": [1]}])
    write_lines(tmp_path / "none.jsonl", [])
    mistakes = {
        (): "there is nothing to sum up",
        ("-d", str(tmp_path / "nowhere")): "there is no folder",
        ("-d", str(tmp_path), "-s", "xyz"): "there are no such files of reviews",
        ("-f", str(tmp_path / "tuple.jsonl")): "the tuple of question 3 is [1]; accepted: two numbers",
        ("-f", str(tmp_path / "none.jsonl")): "has no reviews",
        ("-v", "4"): "invalid choice",
    }
    for arguments, sentence in mistakes.items():
        assert summarize_gpt_review.main(list(arguments)) == 2
        assert sentence in capsys.readouterr().err
