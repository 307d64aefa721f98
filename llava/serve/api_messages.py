"""Bodies of OpenAI's chat completions as requests for the `Assistant`, or as a sentence on what is wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.engine.base import Generation
from llava.errors import UserError
from llava.image_download import is_url
from llava.messages import ROLES, ImageSource, Message, Request
from llava.serve.images import MAX_IMAGES, RemoteImage, image_of_data_url

MAX_CHARACTERS = 2**17  # of all messages; far beyond what a model reads, and tokenized in a moment
MAX_MARKS = 2**18  # commas and brackets of a body: a small list takes twenty times its text in memory
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 256  # of each
_ONLY = {"n": 1, "presence_penalty": 0, "frequency_penalty": 0}
# Of OpenAI's fields, those that would make another answer of it, in a way that nothing here can.
_UNSUPPORTED = ("tools", "functions", "response_format", "logprobs", "top_logprobs", "logit_bias", "audio")
_PLAIN_TEXT = {"type": "text"}
_SHOWN_CHARACTERS = 60  # of a value in an error


class BodyError(UserError):
    """A field of a body is not accepted.

    Args:
        param: Path of the field.
        sentence: What is wrong with it.
    """

    def __init__(self, param: str, sentence: str) -> None:
        super().__init__(sentence)
        self.param = param


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a body asks for.

    Attributes:
        request: For the assistant; its images are decoded when they are read.
        model: Name of the model; None for the one there is.
        stream: Send the answer piece by piece.
        include_usage: Send a last chunk with the usage too.
    """

    request: Request
    model: str | None = None
    stream: bool = False
    include_usage: bool = False


def read_body(data: bytes | bytearray, *, allow_urls: bool = False) -> ChatRequest:
    """Read the body of a request; fields that no answer depends on are not looked at.

    Args:
        data: JSON.
        allow_urls: Accept images by URLs of the web too, which are fetched when they are read.

    Raises:
        UserError: If it is not JSON, or a field has a value that is not accepted.
    """
    marks = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if marks > MAX_MARKS:
        raise UserError(f"the body has {marks} commas and brackets; accepted: up to {MAX_MARKS}")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"the body is not JSON that can be read: {error}") from error
    if not isinstance(body, dict):
        raise UserError(f"the body is {_shown(body)}; accepted: a JSON object with messages")
    options = _field(body, "stream_options", dict, "an object") or {}
    return ChatRequest(
        request=_request(body, allow_urls),
        model=_field(body, "model", str, "the name of a model"),
        stream=_field(body, "stream", bool, "true or false") or False,
        include_usage=_field(options, "include_usage", bool, "true or false") or False,
    )


def _request(body: dict[str, Any], allow_urls: bool) -> Request:
    reduction = _field(body, "token_reduction", str, "a setting such as TRIM:-1 or none")
    if reduction is not None and len(reduction) > _SHOWN_CHARACTERS:
        raise BodyError("token_reduction", f"token_reduction is {_shown(reduction)}...; that is no setting")
    for name, only in _ONLY.items():
        if (value := _number(body, name)) not in (None, only):
            raise BodyError(name, f"{name} is {value:g}; accepted: {only}")
    for name in _UNSUPPORTED:
        if (given := body.get(name)) and given != _PLAIN_TEXT:
            raise BodyError(name, f"{name} is {_shown(given)}; answers are plain text, leave it out")
    return Request(_messages(body, allow_urls), token_reduction=reduction, generation=_generation(body))


def _generation(body: dict[str, Any]) -> Generation:
    """Return how the answer is written; without a temperature the likeliest token is always taken."""
    given = {
        "max_new_tokens": _count(body, "max_completion_tokens") or _count(body, "max_tokens"),
        "temperature": _number(body, "temperature"),
        "top_p": _number(body, "top_p"),
        "seed": _field(body, "seed", int, "a whole number"),
        "stop": _stops(body),
    }
    return Generation(**{name: value for name, value in given.items() if value is not None})


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    value = _field(body, "stop", (str, list), "a text or a list of texts") or []
    stops = [value] if isinstance(value, str) else value
    if len(stops) > MAX_STOPS:
        raise BodyError("stop", f"stop has {len(stops)} texts; accepted: up to {MAX_STOPS}")
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            raise BodyError(
                "stop", f"stop has {_shown(stop)}; accepted: texts of 1 to {MAX_STOP_CHARACTERS} characters"
            )
    return tuple(stops)


def _messages(body: dict[str, Any], allow_urls: bool) -> tuple[Message, ...]:
    entries = _field(body, "messages", list, "a list of messages")
    if not entries:
        raise BodyError("messages", "messages is missing or empty; accepted: a list of messages")
    messages = tuple(_message(entry, f"messages[{index}]", allow_urls) for index, entry in enumerate(entries))
    images = sum(len(message.images) for message in messages)
    if images > MAX_IMAGES:
        raise BodyError("messages", f"the messages have {images} images; accepted: up to {MAX_IMAGES}")
    characters = sum(len(message.text) for message in messages)
    if characters > MAX_CHARACTERS:
        raise BodyError(
            "messages", f"the messages have {characters} characters; accepted: up to {MAX_CHARACTERS}"
        )
    return messages


def _message(entry: Any, where: str, allow_urls: bool) -> Message:
    """Read a message; its parts are joined by line breaks, in their order, an image as its placeholder."""
    if not isinstance(entry, dict):
        raise BodyError(where, f"{where} is {_shown(entry)}; accepted: an object with role and content")
    role = entry.get("role")
    if role not in ROLES:
        raise BodyError(f"{where}.role", f"{where}.role is {_shown(role)}; accepted: {', '.join(ROLES)}")
    content = entry.get("content")
    if isinstance(content, str):
        return Message(role, _text(content, role, f"{where}.content"))
    if not isinstance(content, list):
        raise BodyError(
            f"{where}.content", f"{where}.content is {_shown(content)}; accepted: a text or a list of parts"
        )
    parts = [_part(part, role, f"{where}.content[{index}]", allow_urls) for index, part in enumerate(content)]
    return Message(
        role, "\n".join(text for text, _ in parts), tuple(image for _, own in parts for image in own)
    )


def _part(part: Any, role: str, where: str, allow_urls: bool) -> tuple[str, Sequence[ImageSource]]:
    """Read a part of a message: its text, and the image that it is."""
    kind = part.get("type") if isinstance(part, dict) else part
    if kind == "text":
        return _text(part.get("text"), role, f"{where}.text"), ()
    if kind != "image_url":
        raise BodyError(where, f"{where} is of type {_shown(kind)}; accepted: text, image_url")
    image_url = part.get("image_url")
    url = image_url.get("url") if isinstance(image_url, dict) else None
    if allow_urls and isinstance(url, str) and is_url(url):
        return DEFAULT_IMAGE_TOKEN, [RemoteImage(url, f"the image {where}")]
    # Else nothing is fetched: the server may reach what the client may not.
    if not isinstance(url, str) or url[:5].lower() != "data:":
        accepted = "data:image/...;base64,..." + (", or a URL of http or https" if allow_urls else "")
        fetched = "" if allow_urls else ", and nothing is fetched"
        raise BodyError(
            f"{where}.image_url", f"{where}.image_url.url is {_shown(url)}{fetched}; accepted: {accepted}"
        )
    return DEFAULT_IMAGE_TOKEN, [partial(image_of_data_url, url, f"the image {where}")]


def _text(text: Any, role: str, where: str) -> str:
    """Check a text; in that of a user a placeholder would take the place of an image."""
    if not isinstance(text, str):
        raise BodyError(where, f"{where} is {_shown(text)}; accepted: a text")
    if role == "user" and DEFAULT_IMAGE_TOKEN in text:
        raise BodyError(
            where,
            f"{where} holds {DEFAULT_IMAGE_TOKEN!r}, which marks the place of an image; leave it out, and "
            "send images as parts of type image_url",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BodyError(
            where, f"{where} holds half of a character, at {error.start}; send whole ones"
        ) from error
    return text


def _count(body: dict[str, Any], name: str) -> int | None:
    value = _field(body, name, int, "a whole number")
    if value is not None and value < 1:
        raise BodyError(name, f"{name} is {_shown(value)}; accepted: 1 or more")
    return value


def _number(body: dict[str, Any], name: str) -> float | None:
    value = _field(body, name, (int, float), "a number")
    try:
        return None if value is None else float(value)
    except OverflowError as error:
        raise BodyError(name, f"{name} is {_shown(value)}..., which is too large") from error


def _field(body: dict[str, Any], name: str, kinds: type | tuple[type, ...], accepted: str) -> Any:
    """Return the value of a field; None if it is missing or null.

    Raises:
        BodyError: If it is of another kind.
    """
    value = body.get(name)
    # To Python, true and false are whole numbers.
    if value is None or (isinstance(value, kinds) and (kinds is bool or not isinstance(value, bool))):
        return value
    raise BodyError(name, f"{name} is {_shown(value)}; accepted: {accepted}")


def _shown(value: Any) -> str:
    """Return a value as an error shows it, which is never long."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str) else value)[: _SHOWN_CHARACTERS + 2]
