"""The wire format: chunks byte for byte, bodies that are refused with a sentence, addresses and keys."""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from llava.errors import UserError
from llava.serve.protocol import (
    MAX_PROMPT_CHARACTERS,
    Chunk,
    ChunkSplitter,
    ErrorCode,
    GenerateRequest,
    RefusalError,
    Registration,
    WorkerStatus,
    address_option,
    host_of,
    is_loopback,
    is_same_key,
    key_option,
    parse_object,
    read_address,
    read_body,
    read_chunks,
)


def test_a_chunk_is_json_and_a_zero_byte():
    assert Chunk("A: é\0").encode() == b'{"text": "A: \\u00e9\\u0000", "error_code": 0}\0'
    assert Chunk("no", ErrorCode.WORKER_TIMEOUT).encode() == b'{"text": "no", "error_code": 3}\0'


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_chunks_are_found_wherever_the_network_cuts(size):
    chunks = [Chunk("p"), Chunk("p é \U0001f600"), Chunk("lost", ErrorCode.WORKER)]
    data = b"".join(chunk.encode() for chunk in chunks)
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert list(read_chunks(pieces)) == chunks


def test_a_chunk_in_raw_utf_8_is_read():
    assert Chunk.decode('{"text": "é", "error_code": 0, "more": 1}'.encode()) == Chunk("é")


def test_a_stream_that_ends_in_a_chunk_says_so():
    with pytest.raises(UserError, match="middle of a chunk"):
        list(read_chunks([Chunk("p").encode(), b'{"text"']))
    splitter = ChunkSplitter()
    assert splitter.push(b"ab\0\0c") == [b"ab", b""]
    assert splitter.rest == b"c"


@pytest.mark.parametrize(
    "data", [b"{}", b"[1]", b"x", b'{"text": 1, "error_code": 0}', b'{"text": "a"}', b"\xff"]
)
def test_what_is_no_chunk_is_refused(data):
    with pytest.raises(UserError):
        Chunk.decode(data)


class Incoming:
    def __init__(self, *pieces: bytes, headers: dict[str, str] | None = None) -> None:
        self.pieces = pieces
        self.headers = headers or {}
        self.taken = 0

    async def stream(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            self.taken += 1
            yield piece


def test_a_body_is_read_up_to_its_limit_and_not_further():
    assert asyncio.run(read_body(Incoming(b"12", b"345"), limit=5)) == b"12345"
    long = Incoming(b"123", b"456", b"789")
    with pytest.raises(RefusalError, match="more than 5 bytes") as raised:
        asyncio.run(read_body(long, limit=5))
    assert raised.value.status == 413
    assert long.taken == 2


def test_a_body_announced_too_large_is_not_read():
    announced = Incoming(b"1", headers={"content-length": "6"})
    with pytest.raises(RefusalError):
        asyncio.run(read_body(announced, limit=5))
    assert announced.taken == 0


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"[]", b'"a"', b"1" * 5000])
def test_what_is_no_json_object_is_refused_with_a_sentence(data):
    with pytest.raises(RefusalError, match="the body is") as raised:
        parse_object(data)
    assert raised.value.status == 400
    assert set(raised.value.body) == {"detail", "text", "error_code"}


def test_a_request_has_llavas_defaults():
    asked = GenerateRequest.parse({"prompt": "p"})
    assert asked == GenerateRequest("p", (), temperature=1, top_p=1, max_new_tokens=256, stop=None)


def test_a_request_as_llavas_clients_send_it():
    asked = GenerateRequest.parse(
        {
            **{"model": "llava-v1.5-7b", "prompt": "p", "temperature": 0.2, "top_p": 0.7},
            **{"max_new_tokens": 1536, "stop": "</s>", "images": ["aGk="]},
        }
    )
    assert asked == GenerateRequest("p", ("aGk=",), 0.2, 0.7, 1024, "</s>")
    empty = {
        "prompt": "p",
        "images": None,
        "stop": None,
        "temperature": 0,
        "top_p": 0,
        "max_new_tokens": 512.0,
    }
    assert GenerateRequest.parse(empty) == GenerateRequest("p", (), 0, 0, 512)
    assert GenerateRequest.parse({"prompt": "", "stop": ""}).stop is None


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": None},
        {"prompt": 5},
        {"prompt": "\ud800"},
        {"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)},
        {"images": "aGk="},
        {"images": [1]},
        {"stop": ["a"]},
        {"temperature": "hot"},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": True},
        {"top_p": 1.5},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": -1},
        {"max_new_tokens": 10**400},
    ],
)
def test_a_field_out_of_its_range_is_named(field):
    (name,) = field
    with pytest.raises(RefusalError, match=name) as raised:
        GenerateRequest.parse({"prompt": "p", **field})
    assert raised.value.status == 422
    assert len(str(raised.value)) < 200


def test_registrations_go_there_and_back():
    for status in (None, WorkerStatus(("a", "b"), 1.0, 3)):
        registration = Registration("http://localhost:21002", True, status)
        assert Registration.parse(json.loads(json.dumps(registration.body))) == registration


@pytest.mark.parametrize(
    "change",
    [
        {"worker_name": None},
        {"worker_name": "localhost:1"},
        {"check_heart_beat": "yes"},
        {"worker_status": []},
        {"worker_status": {}},
        {"worker_status": {"model_names": [1]}},
        {"worker_status": {"model_names": ["a"], "speed": 0}},
        {"worker_status": {"model_names": ["a"], "queue_length": -1}},
    ],
)
def test_a_registration_that_says_nothing_usable_is_refused(change):
    body = {"worker_name": "http://localhost:1", "check_heart_beat": True, "worker_status": None}
    with pytest.raises(RefusalError):
        Registration.parse({**body, **change})


@pytest.mark.parametrize(
    ("address", "host", "loopback"),
    [
        ("http://localhost:21002", "localhost", True),
        ("http://LOCALHOST/", "localhost", True),
        ("https://127.0.0.1:1/base/", "127.0.0.1", True),
        ("http://127.5.6.7", "127.5.6.7", True),
        ("http://[::1]:21002", "::1", True),
        ("http://10.0.0.5:21002", "10.0.0.5", False),
        ("http://localhost.example:80", "localhost.example", False),
        ("http://0.0.0.0:80", "0.0.0.0", False),
    ],
)
def test_addresses_of_this_machine_are_told_from_others(address, host, loopback):
    assert host_of(read_address(address, "it")) == host
    assert is_loopback(host) is loopback
    assert not read_address(address, "it").endswith("/")


@pytest.mark.parametrize(
    "text",
    [
        *("", "localhost:21002", "ftp://localhost", "http://", "http://localhost:99999", "http://a b"),
        *(
            "http://localhost@example.org",
            "http://localhost\\@example.org",
            "http://localhost:1?x",
            "http://a#b",
        ),
        *("http://localhost:1\r\nX: y", "file:///etc/passwd", "http://ⓛocalhost", "http://localhost:1\n"),
        *("http://[:::]", "http://[1.2.3.4]", "http://a..b", f"http://{'a' * 64}.org", "http://a:0"),
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(RefusalError, match="accepted: an address"):
        read_address(text, "it")
    with pytest.raises(argparse.ArgumentTypeError):
        address_option(text)


def test_keys_are_compared_whole():
    assert is_same_key("secret", "secret")
    for wrong in (None, "", "secre", "secret ", "sécret"):
        assert not is_same_key(wrong, "secret")
    assert key_option("s3cret!") == "s3cret!"
    for unusable in ("", "two words", "sécret", "a\n"):
        with pytest.raises(argparse.ArgumentTypeError):
            key_option(unusable)
