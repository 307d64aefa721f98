"""The load on a server: every request gets one complete answer, the same as alone."""

import json

import httpx
import pytest

from llava.errors import UserError
from playground.shapes import measure_serving
from playground.shapes.measure_serving import ask, main, make_bodies


@pytest.mark.slow
def test_a_small_load_loses_nothing(tmp_path, capsys):
    path = tmp_path / "load.json"
    argv = ["--requests", "24", "--pictures", "4", "--clients", "6", "--token-reduction", "TRIM:-1", "none"]
    assert main([*argv, "--output", str(path)]) == 0
    assert "| transformers | `none` | 256.0 |" in capsys.readouterr().out
    trim, none = json.loads(path.read_text())["loads"]
    assert (trim["requests"], trim["different"], none["requests"], none["different"]) == (24, 0, 24, 0)
    assert 10 < trim["visual_tokens"] < 60
    assert trim["per_second"] > 0 and trim["first_p95_ms"] >= trim["first_p50_ms"] > 0


@pytest.mark.slow
def test_a_server_that_does_not_start_is_said(capsys):
    assert main(["--pictures", "1", "--token-reduction", "TRIM:0"]) == 2
    assert "does not start: error: " in capsys.readouterr().err


def test_one_request_is_refused_before_a_server_is_started(monkeypatch, capsys):
    monkeypatch.setattr(measure_serving, "measure", lambda *_: pytest.fail("it is measured"))
    assert main(["--requests", "1"]) == 2
    assert "error: --requests is 1; accepted: 2 or more" in capsys.readouterr().err


def streaming(*lines):
    text = "".join(f"data: {line}\n\n" for line in lines)
    return httpx.MockTransport(lambda request: httpx.Response(200, text=text))


PIECE = json.dumps({"choices": [{"delta": {"content": "a"}, "finish_reason": None}]})
END = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop"}]})


@pytest.mark.anyio
@pytest.mark.parametrize("lines", [(PIECE,), (PIECE, "[DONE]"), (PIECE, END), (PIECE, END, END, "[DONE]")])
async def test_what_is_no_complete_answer_is_told(lines):
    async with httpx.AsyncClient(base_url="http://server", transport=streaming(*lines)) as client:
        with pytest.raises(UserError, match="it is not complete"):
            await ask(client, {})
    async with httpx.AsyncClient(
        base_url="http://s", transport=streaming(PIECE, PIECE, END, "[DONE]")
    ) as client:
        assert (await ask(client, {})).text == "aa"


def test_pictures_differ_in_size_and_are_the_same_every_time():
    bodies = make_bodies(3, 8)
    assert bodies == make_bodies(3, 8)
    assert len({json.dumps(body["messages"][0]["content"][0]) for body in bodies}) == 3
    assert len(bodies) == measure_serving.QUESTIONS_PER_PICTURE * 3
