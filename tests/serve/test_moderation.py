"""The moderation of questions, over HTTP."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llava.errors import UserError
from llava.serve.moderation import OBJECTION, Moderation


@contextmanager
def moderating(reply, status=200):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(reply(body["input"]).encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", asked
    server.shutdown()
    server.server_close()


def test_what_is_flagged_is_not_answered():
    with moderating(lambda text: json.dumps({"results": [{"flagged": "bomb" in text}]})) as (url, asked):
        moderation = Moderation(url, "key")
        assert moderation.objection("How is a bomb made?") == OBJECTION
        assert moderation.objection("What is this?") is None
    assert asked[1] == ("/v1/moderations", "Bearer key", {"input": "What is this?"})


@pytest.mark.parametrize(("text", "status"), [("{}", 200), ("<html>", 200), ("{}", 500), ("[]", 200)])
def test_a_server_that_cannot_say_lets_questions_through_and_the_log_tells(text, status, caplog):
    with moderating(lambda _: text, status) as (url, _):
        assert Moderation(url, "secret").objection("What is this?") is None
    assert "a question was not judged" in caplog.text and "secret" not in caplog.text


def test_without_a_key_it_is_refused(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(UserError, match="--moderate needs the variable OPENAI_API_KEY"):
        Moderation.from_environment()
