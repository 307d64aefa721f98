"""A real server at 127.0.0.1 that speaks OpenAI's chat completions, with replies that a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Raw:
    """A response of HTTP that is no reply of a model."""

    status: int = 200
    body: str = "{}"
    headers: dict[str, str] = field(default_factory=dict)


HANG = "hang"
Answer = Callable[[str, int], "str | Raw"]


@dataclass
class JudgeServer:
    """Replies with ``answer(last message, how often it was asked before)``; records what it was sent."""

    answer: Answer
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def reply(self, path: str, request: dict[str, Any], headers: dict[str, str]) -> Raw:
        """Record a request and decide what is sent."""
        text = request["messages"][-1]["content"]
        with self.lock:
            before = sum(earlier["messages"][-1]["content"] == text for earlier in self.requests)
            self.requests.append(request)
            self.headers.append(headers)
        assert path == "/v1/chat/completions"
        answer = self.answer(text, before)
        if answer == HANG:
            self.closing.wait()
            return Raw(500)
        if isinstance(answer, Raw):
            return answer
        return Raw(body=json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]}))


@contextmanager
def serving(answer: Answer) -> Iterator[JudgeServer]:
    """Serve until the block ends."""
    server = JudgeServer(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            raw = server.reply(self.path, request, {k.lower(): v for k, v in self.headers.items()})
            try:
                self.send_response(raw.status)
                for name, value in {"Content-Type": "application/json", **raw.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw.body.encode())))
                self.end_headers()
                self.wfile.write(raw.body.encode())
            except ConnectionError:
                pass  # it waited no longer

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        try:
            yield server
        finally:
            server.closing.set()
            http.shutdown()
            thread.join()
