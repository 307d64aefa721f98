"""The controller over real sockets, with workers that behave and workers that break off anywhere."""

import http.client
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests
from fastapi import Request

from llava.serve import controller, register_worker, web
from llava.serve.controller import Admission, Controller, create_app
from llava.serve.protocol import KEY_HEADER, Chunk, ErrorCode, RefusalError, read_chunks
from llava.serve.web import create_plain_app, create_server, listen, stream_chunks
from llava.serve.worker_registry import WorkerRegistry

MODEL = "m"
STATUS = {"model_names": [MODEL], "speed": 1, "queue_length": 0}


@contextmanager
def serving(app: Any, port: int = 0) -> Iterator[str]:
    """Serve an app from a thread, and yield its address."""
    listening = listen("127.0.0.1", port)
    server = create_server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.start()
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def controlling(
    *workers: str, model: str = MODEL, patience: float = 0.5, port: int = 0, **settings: Any
) -> Iterator[str]:
    registry = WorkerRegistry(heart_beat_limit=settings.pop("heart_beat_limit", 30.0))
    with serving(create_app(Controller(registry, Admission(**settings), patience)), port) as address:
        for worker in workers:
            assert register(address, worker, {**STATUS, "model_names": [model]}).status_code == 200
        yield address


Script = Callable[[socket.socket], None]


@contextmanager
def worker(script: Script, answers_status: bool = True) -> Iterator[str]:
    """Serve what only looks like a worker: ``script`` writes to a client's socket after the HTTP header."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += self.request.recv(65536)
            if not head.startswith(b"POST /worker_get_status"):
                self.request.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                asked.append(head)
                script(self.request)
            elif answers_status:
                body = json.dumps(STATUS).encode()
                self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            else:
                ended.wait(20)

    asked: list[bytes] = []
    ended = threading.Event()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        ended.set()
        server.shutdown()


def send(client: socket.socket, data: bytes) -> None:
    client.sendall(b"%x\r\n%s\r\n" % (len(data), data))


def say_nothing(client: socket.socket) -> None:
    client.sendall(b"0\r\n\r\n")


def complete(client: socket.socket) -> None:
    send(client, Chunk("p").encode() + Chunk("p a").encode())
    send(client, Chunk("p a b").encode()[:9])
    send(client, Chunk("p a b").encode()[9:])
    client.sendall(b"0\r\n\r\n")


def break_off_at_once(client: socket.socket) -> None:
    """Close the connection before anything was sent."""


def break_off_in_the_first_chunk(client: socket.socket) -> None:
    send(client, Chunk("p").encode()[:9])


def break_off_after_a_chunk(client: socket.socket) -> None:
    send(client, Chunk("p").encode() + b'{"text": ')


def end_in_a_chunk(client: socket.socket) -> None:
    break_off_after_a_chunk(client)
    client.sendall(b"0\r\n\r\n")


def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def register(
    address: str, name: str, status: Any = STATUS, check: bool = True, **more: Any
) -> requests.Response:
    body = {"worker_name": name, "check_heart_beat": check, "worker_status": status}
    return requests.post(f"{address}/register_worker", json=body, timeout=20, **more)


def post(address: str, path: str, body: Any = None) -> Any:
    response = requests.post(f"{address}/{path}", json=body, timeout=20)
    assert response.status_code == 200, response.text
    return response.json()


def generate(address: str, model: str = MODEL) -> list[Chunk]:
    response = requests.post(
        f"{address}/worker_generate_stream", json={"model": model, "prompt": "p"}, stream=True, timeout=20
    )
    assert response.status_code == 200
    return list(read_chunks(response.iter_content(None)))


def test_workers_are_registered_listed_and_given_out_as_llavas_clients_expect():
    with controlling() as address:
        assert post(address, "list_models") == {"models": []}
        assert post(address, "get_worker_address", {"model": MODEL}) == {"address": ""}
        assert register(address, "http://localhost:1/").json() is None
        assert post(address, "list_models") == {"models": [MODEL]}
        assert post(address, "get_worker_address", {"model": MODEL}) == {"address": "http://localhost:1"}
        beat = {"worker_name": "http://localhost:1", "queue_length": 3}
        assert post(address, "receive_heart_beat", beat) == {"exist": True}
        unknown = {"worker_name": "http://localhost:2", "queue_length": 0}
        assert post(address, "receive_heart_beat", unknown) == {"exist": False}
        together = {"model_names": [MODEL], "speed": 1, "queue_length": 3}
        assert post(address, "worker_get_status") == together


def test_a_worker_registered_without_its_status_is_asked_for_it(capsys):
    with worker(complete) as one, controlling() as address:
        arguments = ["--controller-address", address, "--worker-name", one]
        assert register_worker.main(arguments) == 0
        assert post(address, "list_models") == {"models": [MODEL]}
        gone = nobody()
        assert register_worker.main([*arguments[:2], "--worker-name", gone]) == 2
        assert f"no worker answers at {gone}" in capsys.readouterr().err
        assert register_worker.main(["--controller-address", nobody(), "--worker-name", one]) == 2
        assert "does not answer" in capsys.readouterr().err


def test_refreshing_drops_workers_that_do_not_answer():
    with worker(complete) as one, controlling(one, nobody()) as address:
        assert post(address, "worker_get_status")["speed"] == 2
        assert post(address, "refresh_all_workers") is None
        assert post(address, "worker_get_status")["speed"] == 1
        assert post(address, "get_worker_address", {"model": MODEL}) == {"address": one}


def test_workers_on_other_machines_are_refused_unless_allowed():
    with controlling(hosts=frozenset({"10.0.0.5"})) as address:
        refused = register(address, "http://10.0.0.6:21002")
        assert refused.status_code == 403
        assert "--allow-worker 10.0.0.6" in refused.json()["detail"]
        assert register(address, "http://10.0.0.5:21002").status_code == 200
        assert register(address, "http://localhost@10.0.0.6").status_code == 422
        assert post(address, "list_models") == {"models": [MODEL]}


def test_a_key_lets_workers_in_from_anywhere_and_nobody_without_it():
    with controlling(key="secret") as address:
        for headers in ({}, {KEY_HEADER: "wrong"}):
            refused = register(address, "http://localhost:1", headers=headers)
            assert refused.status_code == 403
            assert "--key" in refused.json()["detail"]
        assert post(address, "list_models") == {"models": []}
        assert register(address, "http://10.0.0.6:21002", headers={KEY_HEADER: "secret"}).status_code == 200
        beat = {"worker_name": "http://10.0.0.6:21002", "queue_length": 0}
        assert requests.post(f"{address}/receive_heart_beat", json=beat, timeout=20).status_code == 403


@pytest.mark.parametrize("path", ["register_worker", "receive_heart_beat", "get_worker_address"])
@pytest.mark.parametrize(
    ("body", "status"), [(b"{", 400), (b"[]", 400), (b"\xff", 400), (b"{}", 422), (b'{"model": 1}', 422)]
)
def test_bodies_that_make_no_sense_are_refused_with_a_sentence(path, body, status, plain):
    for where in (path, "worker_generate_stream"):
        response = requests.post(f"{plain}/{where}", data=body, timeout=20)
        assert response.status_code == status
        assert response.json()["detail"] == response.json()["text"]
        assert response.json()["error_code"] == ErrorCode.WORKER


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    with controlling() as address:
        yield address


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(plain):
    connection = http.client.HTTPConnection(plain.removeprefix("http://"), timeout=20)
    connection.putrequest("POST", "/worker_generate_stream")
    connection.putheader("Content-Length", str(2**40))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert "bytes" in json.loads(response.read())["detail"]
    connection.close()


def test_no_worker_is_one_chunk_of_its_own(plain):
    (chunk,) = generate(plain, "other")
    assert chunk.error_code == ErrorCode.NO_WORKER
    assert "'other'" in chunk.text


def test_an_answer_is_relayed_byte_for_byte():
    with worker(complete) as one, controlling(one) as address:
        response = requests.post(f"{address}/worker_generate_stream", json={"model": MODEL}, timeout=20)
        assert response.content == b"".join(Chunk(text).encode() for text in ("p", "p a", "p a b"))


@pytest.mark.parametrize("script", [break_off_at_once, break_off_in_the_first_chunk, say_nothing])
def test_a_worker_that_dies_before_it_has_sent_anything_is_replaced_once(script):
    with worker(script) as bad, worker(complete) as good, controlling(bad, good) as address:
        assert [chunk.text for chunk in generate(address)] == ["p", "p a", "p a b"]
        assert post(address, "worker_get_status")["speed"] == 1


def test_it_is_replaced_once_only():
    with (
        worker(break_off_at_once) as bad,
        worker(break_off_at_once) as worse,
        worker(complete) as good,
        controlling(bad, worse, good) as address,
    ):
        (chunk,) = generate(address)
        assert chunk.error_code == ErrorCode.WORKER_TIMEOUT
        assert worse in chunk.text
        assert [chunk.text for chunk in generate(address)] == ["p", "p a", "p a b"]


def test_an_address_where_nobody_listens_is_replaced_too():
    with worker(complete) as good, controlling(nobody(), good) as address:
        assert [chunk.text for chunk in generate(address)] == ["p", "p a", "p a b"]
    with controlling(nobody()) as address:
        assert [chunk.error_code for chunk in generate(address)] == [ErrorCode.WORKER_TIMEOUT]
        assert [chunk.error_code for chunk in generate(address)] == [ErrorCode.NO_WORKER]


@pytest.mark.parametrize("script", [break_off_after_a_chunk, end_in_a_chunk])
def test_a_worker_that_dies_later_is_told_and_nothing_is_sent_twice(script):
    with worker(script) as bad, worker(complete) as good, controlling(bad, good) as address:
        first, last = generate(address)
        assert first == Chunk("p")
        assert last.error_code == ErrorCode.WORKER_TIMEOUT
        assert bad in last.text


def test_a_silent_worker_is_waited_for_while_it_says_that_it_lives():
    def be_slow(client: socket.socket) -> None:
        time.sleep(1)
        send(client, Chunk("p").encode())
        time.sleep(1)
        complete(client)

    with worker(be_slow) as slow, controlling(slow, patience=0.7) as address:
        assert len(generate(address)) == 4


def test_a_silent_worker_that_does_not_say_that_it_lives_is_lost():
    def be_silent(client: socket.socket) -> None:
        while client.recv(2**16):  # until it goes away; its body may come in pieces
            pass

    with worker(be_silent, answers_status=False) as silent, controlling(silent, patience=1) as address:
        (chunk,) = generate(address)
        assert chunk.error_code == ErrorCode.WORKER_TIMEOUT
        assert "silent" in chunk.text


def test_what_a_worker_refuses_is_told():
    app = create_plain_app()

    @app.post("/worker_generate_stream")
    async def refuse():
        raise RefusalError("the prompt is a riddle", 422)

    with serving(app) as strict, controlling(strict) as address:
        assert generate(address) == [Chunk("the prompt is a riddle", ErrorCode.WORKER)]


def test_a_worker_is_dropped_soon_after_its_heart_beats_stay_away():
    with controlling("http://localhost:1", heart_beat_limit=3.0) as address:
        for _ in range(5):
            time.sleep(0.8)
            assert post(
                address, "receive_heart_beat", {"worker_name": "http://localhost:1", "queue_length": 0}
            )
            assert post(address, "list_models") == {"models": [MODEL]}
        begin = time.monotonic()
        while post(address, "list_models")["models"]:
            assert time.monotonic() - begin < 60
            time.sleep(0.05)
        assert time.monotonic() - begin > 2


def test_a_client_that_goes_away_leaves_the_worker_too():
    gone = threading.Event()

    def wait_for_the_end(client: socket.socket) -> None:
        send(client, Chunk("p").encode())
        client.settimeout(10)
        while client.recv(65536):
            pass
        gone.set()

    with worker(wait_for_the_end) as one, controlling(one) as address:
        response = requests.post(
            f"{address}/worker_generate_stream", json={"model": MODEL}, stream=True, timeout=20
        )
        pieces = response.iter_content(None)
        next(pieces)
        assert not gone.wait(0.3)
        response.close()
        assert gone.wait(5)


def test_a_client_that_does_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(web, "SLOWEST_CLIENT_S", 0.3)
    given_up = threading.Event()
    app = create_plain_app()

    async def flood():
        try:
            while True:
                yield b"x" * 2**20
        finally:
            given_up.set()

    @app.post("/")
    async def stream(request: Request):
        return stream_chunks(request, flood())

    with serving(app) as address, socket.create_connection(("127.0.0.1", int(address[17:]))) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert given_up.wait(10)


def test_a_client_that_goes_away_while_it_sends_leaves_no_traceback(plain, caplog):
    with socket.create_connection(("127.0.0.1", int(plain[17:]))) as client:
        client.sendall(b"POST /register_worker HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.2)
    time.sleep(0.3)
    assert caplog.text == ""
    assert post(plain, "list_models") == {"models": []}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--port", "99999"], "'99999' is not a valid port; accepted: 0 to 65535"),
        (["--host", "203.0.113.7"], "203.0.113.7"),
        (["--dispatch-method", "random"], "lottery"),
        (["--key", "two words"], "no spaces"),
        (["--port", "x"], "--port"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, words, capsys):
    assert controller.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_port_that_is_taken_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert controller.main(["--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err


def test_what_is_missing_for_serving_is_named(monkeypatch, capsys):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    assert controller.main([]) == 2
    assert "pip install 'llava[serve]'" in capsys.readouterr().err
