"""What strangers name is fetched from the open internet alone, whatever names and redirects mean."""

import http.server
import socket
import threading

import pytest

from llava import public_web
from llava.errors import UserError
from llava.image_download import download
from llava.public_web import connect, is_public


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::127.0.0.1", False),
        ("64:ff9b::a01:203", False),  # 10.1.2.3 through NAT64
        ("2002:7f00:1::", False),  # 127.0.0.1 through 6to4
    ],
)
def test_what_is_public(address, expected):
    assert is_public(address) is expected


@pytest.fixture
def site():
    """A server that sends everybody on to another address of this machine."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.2:{self.server.server_port}/inner")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", asked
    server.shutdown()
    server.server_close()


def test_no_address_of_this_machine_is_connected_to(site, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", site[0])  # which would connect for us
    port = site[0].rsplit(":", 1)[1]
    for host in ("127.0.0.1", "localhost", "[::1]", "0", "2130706433"):
        with pytest.raises(UserError, match="is not a host with a public address"):
            download(f"http://{host}:{port}", public_only=True)
    assert site[1] == []


def test_a_redirect_is_looked_at_too(site, monkeypatch):
    monkeypatch.setattr(public_web, "is_public", lambda address: address == "127.0.0.1")
    with pytest.raises(UserError, match="127.0.0.2 is not a host with a public address"):
        download(site[0], public_only=True)
    assert site[1] == ["/"]


def test_the_address_that_was_looked_at_is_the_one_that_is_connected_to(monkeypatch):
    """A name that means another address when it is asked for again gains nothing."""
    connected = []
    answers = [[(0, 0, 0, "", (address, 80))] for address in ("93.184.215.14", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: connected.append(place))
    connect("changing.example", 80, 1.0)
    assert connected == [("93.184.215.14", 80)]
    with pytest.raises(UserError, match="changing.example is not a host"):
        connect("changing.example", 80, 1.0)


def test_another_address_of_a_host_is_tried(monkeypatch):
    tried = []

    def fail(place, timeout):
        tried.append(place[0])
        raise OSError("unreachable")

    found = [(0, 0, 0, "", (address, 80)) for address in ("93.184.215.14", "10.0.0.1", "93.184.215.15")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", fail)
    with pytest.raises(OSError, match="unreachable"):
        connect("many.example", 80, 1.0)
    assert tried == ["93.184.215.14", "93.184.215.15"]
