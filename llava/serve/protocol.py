"""LLaVA's wire format between clients, controllers and workers: chunks, bodies, error codes, addresses.

A streamed answer is a row of chunks, each a JSON object in UTF-8 with ``text`` and ``error_code``, followed
by a zero byte. ``text`` is the prompt and all of the answer so far; after an error it is a sentence.
"""

from __future__ import annotations

import argparse
import hmac
import ipaddress
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from llava.errors import UserError
from llava.utils import HALF_PAIR

DELIMITER = b"\0"
CONTROLLER_PORT = 21001
WORKER_PORT = 21002
CONTROLLER_ADDRESS = f"http://localhost:{CONTROLLER_PORT}"
TIMEOUT_S = 5.0  # of a connection and of a short reply
HEART_BEAT_S = 15.0
HEART_BEAT_LIMIT_S = 30.0  # without a beat, after which a worker is dropped
KEY_HEADER = "X-Worker-Key"

MAX_BODY_BYTES = 250 * 2**20
MAX_PROMPT_CHARACTERS = 2**20  # far more than any model reads, and still quick to count
MAX_NEW_TOKENS = 1024  # of one answer, whatever is asked for

_ADDRESS = re.compile(
    r"https?://(\[[0-9a-fA-F:.]+\]|\w[\w-]{0,62}(\.\w[\w-]{0,62})*)(:\d{1,5})?(/[\w./-]*)?",
    re.ASCII,
)
_Kind = TypeVar("_Kind", str, bool, list, dict)


class ErrorCode(IntEnum):
    """What a chunk says about its request."""

    NONE = 0
    WORKER = 1  # the worker could not answer
    NO_WORKER = 2  # none serves the model
    WORKER_TIMEOUT = 3  # the worker was lost


class RefusalError(UserError):
    """A request that is answered with an HTTP error and a sentence.

    Args:
        message: The sentence.
        status: HTTP status.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status

    @property
    def body(self) -> dict[str, Any]:
        """The reply, which clients that expect a chunk can read too."""
        return {"detail": str(self), "text": str(self), "error_code": int(ErrorCode.WORKER)}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a streamed answer.

    Attributes:
        text: Prompt and answer so far, or what went wrong.
        error_code: See `ErrorCode`.
    """

    text: str
    error_code: int = ErrorCode.NONE

    def encode(self) -> bytes:
        """Return the bytes that are sent."""
        content = {"text": self.text, "error_code": int(self.error_code)}
        return json.dumps(content).encode() + DELIMITER

    @classmethod
    def decode(cls, data: bytes) -> Chunk:
        """Read a chunk without its zero byte.

        Raises:
            UserError: If it is none.
        """
        body = parse_object(data)
        text, code = body.get("text"), body.get("error_code")
        if not isinstance(text, str) or not isinstance(code, int):
            raise UserError(f"a chunk is {data!r:.80}; expected: a text and an error_code")
        return cls(text, code)


class ChunkSplitter:
    """Finds whole chunks in bytes that the network cut anywhere.

    Attributes:
        rest: The beginning of a chunk whose end has not come.
    """

    def __init__(self) -> None:
        self.rest = b""

    def push(self, data: bytes) -> list[bytes]:
        """Add bytes and return the chunks that they complete, without zero bytes."""
        *whole, self.rest = (self.rest + data).split(DELIMITER)
        return whole


def read_chunks(pieces: Iterable[bytes]) -> Iterator[Chunk]:
    """Yield the chunks of a streamed answer.

    Raises:
        UserError: If one is not valid, or the stream ends in the middle of one.
    """
    splitter = ChunkSplitter()
    for piece in pieces:
        yield from map(Chunk.decode, splitter.push(piece))
    if splitter.rest:
        raise UserError(f"the answer ends in the middle of a chunk: {splitter.rest!r:.80}")


class IncomingRequest(Protocol):
    """What is needed of a web framework's request."""

    @property
    def headers(self) -> Mapping[str, str]:
        """By lower-case name."""

    def stream(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""


async def read_body(request: IncomingRequest, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read a request's body, and no more of it than is accepted.

    Raises:
        RefusalError: If it is too large.
    """
    refusal = RefusalError(f"the request has more than {limit:,} bytes, the most that is accepted", 413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise refusal
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise refusal
    return bytes(body)


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RefusalError: If it is something else.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusalError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise RefusalError(f"the body is JSON of type {type(body).__name__}; accepted: an object")
    return body


def read_field(body: Mapping[str, Any], name: str, kind: type[_Kind]) -> _Kind | None:
    """Return a field of a body; None if it is missing or null.

    Raises:
        RefusalError: If it has another type, or is a text that cannot be written.
    """
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind):
        raise RefusalError(f"{name!r} is {value!r:.60}; accepted: {kind.__name__}", 422)
    if isinstance(value, str) and HALF_PAIR.search(value):
        raise RefusalError(f"{name!r} has halves of characters (U+D800 to U+DFFF), which are no text", 422)
    return value


def require_field(body: Mapping[str, Any], name: str, kind: type[_Kind]) -> _Kind:
    """Return a field of a body.

    Raises:
        RefusalError: If it is missing or has another type.
    """
    value = read_field(body, name, kind)
    if value is None:
        raise RefusalError(f"the body has no {name!r}; accepted: {kind.__name__}", 422)
    return value


def read_number(body: Mapping[str, Any], name: str, default: float, most: float = 2**53) -> float:
    """Return a field that is a number from 0 to ``most``.

    Raises:
        RefusalError: If it is something else.
    """
    value = body.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        accepted = f"a number from 0 to {most:g}" if most < 2**53 else "a number, 0 or more"
        raise RefusalError(f"{name!r} is {value!r:.60}; accepted: {accepted}", 422)
    return float(value)


def read_texts(body: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a field that is a list of texts; none if it is missing or null.

    Raises:
        RefusalError: If it is something else.
    """
    values = read_field(body, name, list) or []
    if not all(isinstance(value, str) for value in values):
        raise RefusalError(f"{name!r} has entries that are no texts; accepted: a list of texts", 422)
    return tuple(values)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """What a client asks of a worker.

    Attributes:
        prompt: Rendered with a template, with one ``<image>`` per image.
        images: Image files in base64.
        temperature: Of the sampling.
        top_p: Likewise; 0 takes the likeliest token.
        max_new_tokens: The most tokens of the answer.
        stop: Text that ends the answer, if any.
    """

    prompt: str
    images: tuple[str, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    stop: str | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> GenerateRequest:
        """Read a request's body; ``model`` is the controller's to read.

        Raises:
            RefusalError: If a field is missing or out of its range.
        """
        prompt = require_field(body, "prompt", str)
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RefusalError(f"the prompt has more than {MAX_PROMPT_CHARACTERS:,} characters", 422)
        wanted = read_number(body, "max_new_tokens", 256)
        if not wanted.is_integer():
            raise RefusalError(f"'max_new_tokens' is {wanted}; accepted: a whole number", 422)
        return cls(
            prompt=prompt,
            images=read_texts(body, "images"),
            temperature=read_number(body, "temperature", 1.0),
            top_p=read_number(body, "top_p", 1.0, most=1),
            max_new_tokens=min(int(wanted), MAX_NEW_TOKENS),
            stop=read_field(body, "stop", str) or None,
        )


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What a worker says of itself.

    Attributes:
        model_names: What it serves.
        speed: Relative to other workers.
        queue_length: Requests that it answers or that wait for it.
    """

    model_names: tuple[str, ...]
    speed: float
    queue_length: int

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> WorkerStatus:
        """Read the JSON form.

        Raises:
            RefusalError: If a field is missing or out of its range.
        """
        require_field(body, "model_names", list)
        speed = read_number(body, "speed", 1.0)
        if speed == 0:
            raise RefusalError(f"'speed' is {speed}; accepted: a number above 0", 422)
        return cls(read_texts(body, "model_names"), speed, int(read_number(body, "queue_length", 0)))

    @property
    def body(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Registration:
    """What a worker, or somebody for it, tells a controller.

    Attributes:
        worker_name: Its address.
        check_heart_beat: Whether it is dropped when it no longer says that it lives.
        status: Asked for at its address if missing.
    """

    worker_name: str
    check_heart_beat: bool
    status: WorkerStatus | None = None

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Registration:
        """Read the JSON form.

        Raises:
            RefusalError: If a field is missing, or the address is none.
        """
        status = read_field(body, "worker_status", dict)
        return cls(
            read_address(require_field(body, "worker_name", str), "'worker_name'"),
            require_field(body, "check_heart_beat", bool),
            None if status is None else WorkerStatus.parse(status),
        )

    @property
    def body(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "worker_name": self.worker_name,
            "check_heart_beat": self.check_heart_beat,
            "worker_status": None if self.status is None else self.status.body,
        }


def read_address(text: str, name: str) -> str:
    """Return the address of a server without a slash at its end.

    Args:
        text: Such as ``http://localhost:21002``.
        name: What error messages call it.

    Raises:
        RefusalError: If it is none.
    """
    if not _is_address(text):
        raise RefusalError(
            f"{name} is {text!r:.80}; accepted: an address such as http://localhost:21002", 422
        )
    return text.rstrip("/")


def _is_address(text: str) -> bool:
    if not _ADDRESS.fullmatch(text):
        return False
    try:
        parts = urlsplit(text)
        if "[" in text:
            ipaddress.IPv6Address(parts.hostname or "")
        return parts.port != 0  # one that is too large is a ValueError
    except ValueError:
        return False


def host_of(address: str) -> str:
    """Return the host of an address from `read_address`."""
    return urlsplit(address).hostname or ""


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, without asking anybody for the address of a name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_same_key(given: str | None, expected: str) -> bool:
    """Compare keys in a time that says nothing about them."""
    return hmac.compare_digest((given or "").encode(), expected.encode())


def key_headers(key: str | None) -> dict[str, str]:
    """Return the headers that carry a key, if there is one."""
    return {} if key is None else {KEY_HEADER: key}


def add_controller_address(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the controller is."""
    parser.add_argument(
        "--controller-address",
        type=address_option,
        default=CONTROLLER_ADDRESS,
        metavar="URL",
        help=f"(default: {CONTROLLER_ADDRESS})",
    )


def key_option(text: str) -> str:
    """Read a key from a command line.

    Raises:
        argparse.ArgumentTypeError: If it cannot be sent in a header.
    """
    if not re.fullmatch(r"[!-~]+", text):
        raise argparse.ArgumentTypeError("a key has ASCII letters, digits and punctuation, and no spaces")
    return text


def address_option(text: str) -> str:
    """Read an address from a command line; see `read_address`.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    try:
        return read_address(text, "the value")
    except RefusalError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
