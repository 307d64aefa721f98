"""The judge over real HTTP: what is repeated, what ends the run, what is kept, what is used again."""

import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from llava.errors import UserError
from llava.eval.benchmark import JudgeTask, Mark, Question, Response
from llava.eval.judge import Judge, RequestFailed
from llava.eval.reviews import review
from tests.eval.judge_server import HANG, Raw, serving

KEY = "sk-secret"


def points(reply):
    try:
        return float(reply)
    except ValueError:
        return None


TASK = JudgeTask(
    messages=lambda response: [{"role": "user", "content": f"{response.question.text} {response.text}"}],
    points=points,
    record=lambda response, reply: {"question_id": response.question.id, "content": reply},
    reviews="",
    temperatures=(0.0, 0.5, 1.0),
    max_tokens=8,
)


def response(number, error=None):
    question = Question(number, f"Q{number}", unit=f"image{number // 2}", group=f"g{number % 2}")
    return Response(question, f"A{number}", error)


def responses(count):
    return [response(number) for number in range(count)]


def judge(server, model="m", timeout_s=5.0):
    return Judge(model, server.url, KEY, timeout_s=timeout_s, waits_s=(0, 0))


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(server, **settings):
    return judge(server, **settings).ask([{"role": "user", "content": "Q"}], 0.5, 8)


def test_a_reply_comes_back_and_the_request_is_what_was_meant():
    with serving(lambda *_: "0.5") as server:
        assert ask(server) == "0.5"
    assert server.requests == [
        {"model": "m", "messages": [{"role": "user", "content": "Q"}], "temperature": 0.5, "max_tokens": 8}
    ]
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "passing",
    [
        Raw(500),
        Raw(503, "not JSON", {"Content-Type": "text/html"}),
        Raw(429),
        Raw(200, '{"choices": [{'),
        Raw(200, "[]"),
        Raw(200, '{"choices": [{"message": {}}]}'),
        Raw(200, "<html>", {"Content-Type": "text/html"}),
    ],
)
def test_what_may_pass_is_tried_again_and_only_so_often(passing):
    with serving(lambda _, before: passing if before < 2 else "1") as server:
        assert ask(server) == "1"
    with serving(lambda *_: passing) as server, pytest.raises(RequestFailed, match="the judge 'm' at http"):
        ask(server)
    assert len(server.requests) == 3


def test_a_server_that_hangs_or_is_not_there_is_waited_for_within_bounds():
    with serving(lambda *_: HANG) as server, pytest.raises(RequestFailed, match="cannot be reached"):
        ask(server, timeout_s=0.1)
    assert len(server.requests) == 3
    with pytest.raises(RequestFailed, match="cannot be reached"):
        ask(server)  # its port is closed by now


def test_the_server_says_how_long_to_wait_within_a_bound():
    waits = []
    pauses = {0: Raw(429, "{}", {"Retry-After": "7"}), 1: Raw(429, "{}", {"Retry-After": "86400"})}
    with serving(lambda _, before: pauses.get(before, "1")) as server:
        assert judge(server).ask([{"content": "Q"}], 0, 8, waits.append) == "1"
    assert waits == [7, 60]
    waits.clear()
    date = {"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}
    with serving(lambda _, before: "1" if before else Raw(503, "{}", date)) as server:
        Judge("m", server.url, waits_s=(2, 4)).ask([{"content": "Q"}], 0, 8, waits.append)
    assert waits == [2]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_refusal_is_one_sentence_at_once_without_the_key(status):
    refusal = Raw(status, json.dumps({"error": {"message": f"no such thing, {KEY}"}}))
    with serving(lambda *_: refusal) as server, pytest.raises(UserError) as caught:
        ask(server)
    assert len(server.requests) == 1
    sentence = str(caught.value)
    assert f"the judge 'm' at {server.url}" in sentence
    assert f"status {status}" in sentence
    assert ("OPENAI_API_KEY" if status in (401, 403) else "no such thing") in sentence
    assert KEY not in sentence


@pytest.mark.parametrize("body", ['{"choices": []}', '{"choices": [{"message": {"content": null}}]}'])
def test_no_choice_and_no_content_are_an_empty_reply(body):
    with serving(lambda *_: Raw(200, body)) as server:
        assert ask(server) == ""


def test_half_a_character_in_a_reply_fits_into_a_file():
    body = '{"choices": [{"message": {"content": "1\\ud800"}}]}'
    with serving(lambda *_: Raw(200, body)) as server:
        assert ask(server) == "1?"


def test_the_environment_says_where_the_judge_is(monkeypatch):
    with serving(lambda *_: "1") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a local server needs none
        assert Judge.from_environment("m").ask([{"content": "Q"}], 0, 8) == "1"
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert "https://api.openai.com/v1" in str(Judge.from_environment("gpt-4"))


@pytest.mark.parametrize(
    ("url", "key", "sentence"),
    [
        ("localhost:8000", "", "URL is 'localhost:8000'; accepted"),
        ("http://[::1", "", r"URL is 'http://\[::1'; accepted"),
        ("http://localhost:port", "", "URL is 'http://localhost:port'; accepted"),
        ("http://localhost", "sk-\u00fc\n", "OPENAI_API_KEY"),
    ],
)
def test_what_cannot_be_a_url_or_a_key_is_refused(url, key, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        Judge("m", url, key)
    assert "sk-" not in str(caught.value)


def test_what_is_secret_in_a_url_is_not_shown():
    judge = Judge("m", "http://user:password@localhost:1/v1?key=k")
    assert str(judge) == "the judge 'm' at http://localhost:1/v1"


def test_without_openai_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'llava\[eval\]'"):
        Judge("m", "http://localhost")


def test_marks_are_in_the_order_of_the_responses_and_records_whole(tmp_path):
    """Later questions are answered sooner here, and a response without an answer is not sent."""

    def answer(text, _):
        number = int(text.split("A")[1])
        time.sleep(0.02 * (5 - number))
        return str(number / 10)

    asked = [*responses(5), response(5, error="no image")]
    path = tmp_path / "reviews" / "run.jsonl"
    with serving(answer) as server:
        reviews = review(judge(server), TASK, asked, path)
    assert reviews.marks == (
        *(Mark(f"image{number // 2}", number / 10, f"g{number % 2}") for number in range(5)),
        Mark("image2", 0.0, "g1"),
    )
    assert (reviews.failures, reviews.judge, len(server.requests)) == (0, "m", 5)
    records = lines(path)
    assert sorted(record["question_id"] for record in records) == [0, 1, 2, 3, 4]
    assert all(record["metadata"].keys() == {"judge", "prompt_hash", "date"} for record in records)
    assert reviews.date == max(record["metadata"]["date"] for record in records)


def test_a_reply_that_cannot_be_read_is_asked_for_again_with_the_next_temperature(tmp_path):
    with serving(lambda _, before: "0.5" if before == 2 else "well...") as server:
        reviews = review(judge(server), TASK, responses(1), tmp_path / "r.jsonl")
    assert [mark.points for mark in reviews.marks] == [0.5]
    assert [request["temperature"] for request in server.requests] == [0.0, 0.5, 1.0]


def test_a_reply_that_never_can_be_read_is_a_failure_and_asked_for_by_the_next_run(tmp_path, caplog):
    path = tmp_path / "r.jsonl"
    with serving(lambda text, _: "well..." if "A1" in text else "1") as server:
        reviews = review(judge(server), TASK, responses(5), path)
    assert (len(reviews.marks), reviews.failures, len(server.requests)) == (4, 1, 4 + 3)
    assert "question 1 has no review: 'well...'" in caplog.text
    with serving(lambda *_: "0") as server:
        reviews = review(judge(server), TASK, responses(5), path)
    assert [mark.points for mark in reviews.marks] == [1, 0, 1, 1, 1]
    assert (reviews.failures, len(server.requests)) == (0, 1)


def test_a_request_that_fails_is_a_failure_and_not_the_end(tmp_path):
    with serving(lambda text, _: Raw(500) if "A1" in text else "1") as server:
        reviews = review(judge(server), TASK, responses(5), tmp_path / "r.jsonl")
    assert (len(reviews.marks), reviews.failures) == (4, 1)


def test_a_judge_that_keeps_failing_ends_the_run_and_what_it_said_is_kept(tmp_path):
    path = tmp_path / "r.jsonl"
    with serving(lambda text, _: "1" if "A0" in text else Raw(500)) as server:
        with pytest.raises(UserError, match="3 questions in a row .* status 500.*run again"):
            review(judge(server), TASK, responses(60), path)
        assert len(server.requests) < 60 * 3
    assert [record["question_id"] for record in lines(path)] == [0]
    with serving(lambda *_: "0") as server:
        reviews = review(judge(server), TASK, responses(60), path)
    assert [mark.points for mark in reviews.marks] == [1, *[0] * 59]
    assert len(server.requests) == 59


def test_a_refusal_ends_the_run(tmp_path):
    with (
        serving(lambda *_: Raw(401)) as server,
        pytest.raises(UserError, match="status 401: OPENAI_API_KEY"),
    ):
        review(judge(server), TASK, responses(400), tmp_path / "r.jsonl")
    assert len(server.requests) < 400


def test_a_killed_run_goes_on_where_it_was(tmp_path, caplog):
    path = tmp_path / "r.jsonl"
    with serving(lambda *_: "1") as server:
        review(judge(server), TASK, responses(4), path)
    whole = path.read_text()
    path.write_text(whole[:-20])
    with serving(lambda *_: "1") as server:
        reviews = review(judge(server), TASK, responses(4), path)
        assert len(server.requests) == 1
        again = review(judge(server), TASK, responses(4), path)
        assert len(server.requests) == 1
    assert reviews == again
    assert len(reviews.marks) == 4
    assert sorted(record["question_id"] for record in lines(path)) == [0, 1, 2, 3]
    assert [file.name for file in tmp_path.glob("r*")] == ["r.jsonl"]  # nothing of worth was moved aside
    assert caplog.text == ""


def test_two_runs_at_once_do_not_pay_twice(tmp_path):
    path = tmp_path / "r.jsonl"

    def run(server):
        return review(judge(server), TASK, responses(4), path)

    with serving(lambda *_: "1") as server, ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, [server, server])
        assert len(server.requests) == 4
    assert first.marks == second.marks


def test_reviews_of_other_answers_or_another_judge_are_moved_aside(tmp_path, caplog):
    path = tmp_path / "r.jsonl"
    changed = [Response(response(0).question, "A9"), *responses(3)[1:]]
    with serving(lambda *_: "1") as server:
        first = review(judge(server), TASK, responses(3), path)
        second = review(judge(server), TASK, changed, path)
        assert len(server.requests) == 3 + 1
        assert len(caplog.records) == 1
        assert "2 of 3 are used" in caplog.text
        assert f"kept in {path}.1" in caplog.text
        third = review(judge(server, model="other"), TASK, changed, path)
        assert len(server.requests) == 3 + 1 + 3
    assert len(lines(tmp_path / "r.jsonl.1")) == len(lines(tmp_path / "r.jsonl.2")) == len(lines(path)) == 3
    assert {record["metadata"]["judge"] for record in lines(path)} == {"other"}
    assert (first.judge, third.judge) == ("m", "other")
    # All three were judged alike, whatever was answered.
    assert first.prompt_hash == second.prompt_hash == third.prompt_hash


def test_another_prompt_is_told_by_its_hash(tmp_path):
    with serving(lambda *_: "1") as server:
        one = review(judge(server), TASK, responses(1), tmp_path / "a")
        other = [Response(Question(0, "another Q"), "A0")]
        two = review(judge(server), TASK, other, tmp_path / "b")
    assert one.prompt_hash != two.prompt_hash


def test_a_run_over_fewer_questions_leaves_the_reviews_of_the_others(tmp_path):
    path = tmp_path / "r.jsonl"
    with serving(lambda *_: "1") as server:
        review(judge(server), TASK, responses(4), path)
        assert len(review(judge(server), TASK, responses(2), path).marks) == 2
        assert len(review(judge(server), TASK, responses(4), path).marks) == 4
        assert len(server.requests) == 4


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 1, "question_id": 0, "content": "1", "tuple": [8.0, 7.0]}',  # LLaVA's
        '{"question_id": 0, "content": "1", "metadata": {"judge": "m"}}',
        '{"question_id": [0], "content": "1", "metadata": {"judge": "m", "prompt_hash": "", "date": ""}}',
        "[]",
        "no JSON",
    ],
)
def test_what_is_no_review_of_this_judge_is_moved_aside(tmp_path, line, caplog):
    path = tmp_path / "r.jsonl"
    path.write_text(line + "\n\n")
    with serving(lambda *_: "1") as server:
        assert len(review(judge(server), TASK, responses(1), path).marks) == 1
    assert (tmp_path / "r.jsonl.1").read_text() == line + "\n\n"
    assert len(lines(path)) == 1
    assert caplog.records[0].levelno == logging.WARNING


def test_a_file_that_cannot_be_written_is_named_before_anything_is_asked(tmp_path):
    (tmp_path / "file").touch()
    with serving(lambda *_: "1") as server, pytest.raises(UserError, match="r.jsonl cannot be"):
        review(judge(server), TASK, responses(1), tmp_path / "file" / "r.jsonl")
    assert server.requests == []
