"""A language model that scores answers, behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from llava.errors import UserError
from llava.eval.benchmark import Messages
from llava.eval.files import JsonObject

OPENAI_URL = "https://api.openai.com/v1"
TIMEOUT_S = 60.0
WAITS_S = (1.0, 4.0, 16.0, 32.0)
LONGEST_WAIT_S = 60.0  # whatever the server asks for


class RequestFailed(Exception):  # noqa: N818 - it is no error of the program, and mostly passes
    """A request that got no reply, for a reason that may pass.

    Args:
        reason: A sentence.
        wait_s: How long the server asks to wait.
    """

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Judge:
    """A language model behind an OpenAI-compatible endpoint.

    Args:
        model: Its name there.
        base_url: The endpoint, such as ``http://localhost:8000/v1``.
        key: Of the endpoint; empty for a server that needs none.
        timeout_s: How long a reply may take.
        waits_s: Before each further try of a request that failed.

    Raises:
        UserError: If openai is not installed, or the URL or the key cannot be one.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str = "",
        *,
        timeout_s: float = TIMEOUT_S,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise UserError("a judge needs openai: pip install 'llava[eval]'") from error
        self._url = _without_secrets(base_url)
        if not (key.isascii() and key.isprintable()):
            raise UserError("the judge's key (OPENAI_API_KEY) holds characters that no key has")
        self.model = model
        self._key = key
        self._waits_s = tuple(waits_s)
        # Servers that need no key ignore it, and the client insists on one.
        self._client = OpenAI(api_key=key or "none", base_url=base_url, timeout=timeout_s, max_retries=0)

    @classmethod
    def from_environment(cls, model: str) -> Judge:
        """Return the judge at ``OPENAI_BASE_URL`` (OpenAI's if not set), with the key ``OPENAI_API_KEY``.

        Raises:
            UserError: See `Judge`.
        """
        url = os.environ.get("OPENAI_BASE_URL", "").strip() or OPENAI_URL
        return cls(model, url, os.environ.get("OPENAI_API_KEY", "").strip())

    def ask(
        self,
        messages: Messages,
        temperature: float,
        max_tokens: int,
        pause: Callable[[float], object] = time.sleep,
    ) -> str:
        """Return the reply to a chat, empty if there is none in what the server sends.

        Args:
            messages: The chat.
            temperature: Of the sampling.
            max_tokens: Of the reply.
            pause: Waits before a further try; one that returns something true has it given up.

        Raises:
            RequestFailed: If all tries failed.
            UserError: If the server refuses the request.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        for wait_s in self._waits_s:
            try:
                return self._request(request)
            except RequestFailed as failure:
                if pause(max(wait_s, min(failure.wait_s, LONGEST_WAIT_S))):
                    raise
        return self._request(request)

    def _request(self, request: JsonObject) -> str:
        from openai import APIConnectionError, APIStatusError

        try:
            # The text, because the client takes what is no completion for one.
            text = self._client.chat.completions.with_raw_response.create(**request).text
        except APIStatusError as error:
            raise self._explain(error.status_code, error.message, error.response.headers) from error
        except APIConnectionError as error:
            raise RequestFailed(f"{self} cannot be reached: {error} ({error.__cause__})") from error
        try:
            choices = json.loads(text)["choices"]
            reply = str(choices[0]["message"]["content"] or "") if choices else ""
            return reply.encode(errors="replace").decode()  # halves of characters fit into no file
        except (ValueError, LookupError, TypeError) as error:
            raise RequestFailed(f"{self} sent what is no chat completion: {text!r:.80}") from error

    def _explain(self, status: int, message: str, headers: Mapping[str, str]) -> Exception:
        """Return the error to raise for a status that is no success."""
        if status in (401, 403):  # the server may quote the key, or parts of it
            return UserError(
                f"{self} answers with status {status}: OPENAI_API_KEY is not a key that it accepts"
            )
        if self._key:
            message = message.replace(self._key, "...")
        sentence = f"{self} answers with status {status}: {message:.200}"
        if status in (408, 409, 429) or status >= 500:
            return RequestFailed(sentence, _seconds(headers.get("retry-after", "")))
        return UserError(sentence)

    def __str__(self) -> str:
        return f"the judge {self.model!r} at {self._url}"


def _without_secrets(url: str) -> str:
    """Return a URL as it may be shown.

    Raises:
        UserError: If it is not one of HTTP.
    """
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise UserError(f"the judge's URL is {url!r}; accepted: one such as http://localhost:8000/v1")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _seconds(text: str) -> float:
    """Read the header ``Retry-After``; 0 if it is a date or missing."""
    try:
        return float(text)
    except ValueError:
        return 0.0
