"""OpenAI's chat completions over HTTP, answered by an `Assistant`."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import anyio
import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llava.assistant import Assistant
from llava.errors import PromptTooLongError, UserError
from llava.messages import Answer, ImageSource
from llava.mm_utils import tokenizer_image_token
from llava.serve.api_messages import BodyError, ChatRequest, read_body
from llava.serve.images import MAX_IMAGE_BYTES, MAX_IMAGES, RemoteImage
from llava.serve.metrics import CONTENT_TYPE, Metrics
from llava.serve.streaming import stream_answer
from llava.utils import printable

MAX_BODY_BYTES = MAX_IMAGES * MAX_IMAGE_BYTES * 4 // 3 + 2**20
BODY_SECONDS = 120.0  # for a body to come
STALL_SECONDS = 30.0  # after which a client that takes no more bytes counts as gone
FETCHES_AT_ONCE = 16  # of images behind URLs
GRACE_SECONDS = 10.0  # for answers that are running when the server ends
CLIENT_GONE = 499  # of nginx, in metrics: HTTP has no status for an answer that nobody reads
_OPEN_PATH = "/health"
_MESSAGE_CHARACTERS = 1000  # of an error, which may quote what a client sent

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What one server is to do.

    Attributes:
        models: Names that requests may call the model by; the first is the one it has.
        api_key: That all requests but those of the server's health need; None for none.
        concurrency: Requests answered at once.
        queue: Requests that may wait besides.
        body_bytes: The largest body of a request.
        allow_urls: Fetch images whose URLs a request names, from public addresses.
    """

    models: tuple[str, ...]
    api_key: str | None = None
    concurrency: int = 16
    queue: int = 64
    body_bytes: int = MAX_BODY_BYTES
    allow_urls: bool = False


class ApiError(Exception):
    """A request is not answered.

    Args:
        status: Of HTTP.
        sentence: Why.
        code: For programs.
        param: Field of the body, if it is about one.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.param = param
        self.headers = headers

    @classmethod
    def of(cls, error: Exception) -> ApiError:
        """Return what a client is told of an error; one that is not the client's is logged."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, UserError):
            code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else None
            return cls(400, str(error), code, error.param if isinstance(error, BodyError) else None)
        logger.error("a request failed", exc_info=error)
        return cls(500, f"{type(error).__name__}: {error}", "engine_error")

    @property
    def body(self) -> dict[str, Any]:
        """What OpenAI's clients read."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        message = printable(" ".join(str(self).split()))[:_MESSAGE_CHARACTERS]
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """Return a whole response."""
        return json_response(self.status, self.body, self.headers)


def json_response(status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with JSON in ASCII, so that any text can be in it."""
    return Response(json.dumps(content), status, headers, "application/json")


class Reply:
    """What one client is sent: a whole body, or the events of a stream.

    Args:
        scope: Of the request.
        receive: Likewise.
        send: Likewise.

    Attributes:
        status: How it ended; `CLIENT_GONE` before.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.status = CLIENT_GONE
        self._scope = scope
        self._receive = receive
        self._send_message = send
        self._is_streaming = False

    async def whole(self, response: Response) -> None:
        """Send everything at once."""
        await response(self._scope, self._receive, self._send)
        self.status = response.status_code

    async def event(self, data: str) -> None:
        """Send an event of a stream, which begins with the first one."""
        if not self._is_streaming:
            self._is_streaming = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),  # a proxy that gathers the pieces would defeat their purpose
            ]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send(
            {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
        )

    async def end(self, status: int = 200) -> None:
        """End a stream."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        self.status = status

    async def fail(self, error: Exception) -> None:
        """Say what is wrong, in the place of an answer or at the end of its beginning."""
        failure = ApiError.of(error)
        if not self._is_streaming:
            await self.whole(failure.response())
            return
        await self.event(json.dumps(failure.body))
        await self.end(failure.status)

    async def _send(self, message: Any) -> None:
        """Send a message.

        Raises:
            ClientDisconnect: If the client takes nothing any more.
        """
        try:
            with anyio.fail_after(STALL_SECONDS):
                await self._send_message(message)
        except TimeoutError as error:
            raise ClientDisconnect from error


class Completion:
    """Writes one answer the way OpenAI's clients read it.

    Args:
        chat: What was asked.
        model: Name of the model.
        text_tokens: Of the prompt without its images.
    """

    def __init__(self, chat: ChatRequest, model: str, text_tokens: int) -> None:
        self.chat = chat
        self.text_tokens = text_tokens
        self._head = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the answer in one object."""
        message = {"role": "assistant", "content": answer.text}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self._usage(answer),
        }

    def first(self) -> str:
        """Return the chunk that begins a stream."""
        return self._chunk([_choice({"role": "assistant", "content": ""})])

    def piece(self, text: str) -> str:
        """Return the chunk of a piece of the answer."""
        return self._chunk([_choice({"content": text})])

    def last(self, answer: Answer) -> list[str]:
        """Return what ends a stream."""
        chunks = [self._chunk([_choice({}, answer.finish_reason)])]
        if self.chat.include_usage:
            chunks.append(self._chunk([], self._usage(answer)))
        return [*chunks, "[DONE]"]

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        chunk = {**self._head, "object": "chat.completion.chunk", "choices": choices}
        return json.dumps({**chunk, "usage": usage} if self.chat.include_usage else chunk)

    def _usage(self, answer: Answer) -> dict[str, Any]:
        cost = answer.cost
        prompt_tokens = self.text_tokens + cost.visual_tokens
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": cost.new_tokens,
            "total_tokens": prompt_tokens + cost.new_tokens,
            "prompt_tokens_details": {"visual_tokens": cost.visual_tokens, "patches": cost.patches},
        }


def _choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish_reason}


class ChatCompletions:
    """``POST /v1/chat/completions``, an ASGI application: one coroutine has a request from its first byte on.

    Args:
        assistant: Answers.
        settings: Of the server.
    """

    def __init__(self, assistant: Assistant, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self._assistant = assistant
        self._limiter = anyio.CapacityLimiter(settings.concurrency)
        self._fetchers = anyio.CapacityLimiter(FETCHES_AT_ONCE)
        self._reader = anyio.CapacityLimiter(1)  # a body takes a multiple of its size while it is read
        self._present: set[anyio.CancelScope] = set()  # one for each request
        self._is_stopping = False

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return self._limiter.borrowed_tokens

    @property
    def waiting(self) -> int:
        """Requests that are read, or wait for their turn."""
        return len(self._present) - self.running

    def stop(self) -> None:
        """End what is not finished, and tell those who wait for it."""
        self._is_stopping = True
        for scope in self._present:
            scope.cancel()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        reply = Reply(scope, receive, send)
        try:
            async with anyio.create_task_group() as group:
                self._present.add(group.cancel_scope)
                try:
                    await self._respond(Request(scope, receive), reply, group)
                finally:
                    self._present.discard(group.cancel_scope)
                group.cancel_scope.cancel()
            if self._is_stopping and reply.status == CLIENT_GONE:
                await self._tell(reply, ApiError(503, "the server is being stopped", "stopping"))
        finally:
            self.metrics.requests[reply.status] += 1

    async def _respond(self, request: Request, reply: Reply, group: anyio.abc.TaskGroup) -> None:
        """Send an answer or an error; raises nothing."""
        began = time.monotonic()
        try:
            self._admit(request)
            body = await self._read(request)
            completion = await anyio.to_thread.run_sync(self._prepare, body, limiter=self._reader)
            del body
            group.start_soon(_cancel_when_gone, request, group.cancel_scope)
            await self._fetch(completion.chat.request.images)
            answer = await self._answer(completion, reply, began)
            if not completion.chat.stream:
                await reply.whole(json_response(200, completion.whole(answer)))
                return
            for chunk in completion.last(answer):
                await reply.event(chunk)
            await reply.end()
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever an engine raises is told and logged
            await self._tell(reply, error)

    async def _tell(self, reply: Reply, error: Exception) -> None:
        try:
            await reply.fail(error)
        except ClientDisconnect:
            return

    def _admit(self, request: Request) -> None:
        """Refuse what need not be read.

        Raises:
            ApiError: If too many wait already, or the body is no JSON or too large.
        """
        if len(self._present) > self.settings.concurrency + self.settings.queue:
            raise ApiError(
                503,
                f"{self.running} requests are being answered and {self.settings.queue} wait already; "
                "try again in a moment",
                "overloaded",
                headers={"Retry-After": "1"},
            )
        # A page of another site can make a browser send other types here without being asked.
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be JSON, with the header Content-Type: application/json")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.settings.body_bytes:
            raise self._too_large()

    async def _read(self, request: Request) -> bytearray:
        """Read a body.

        Raises:
            ApiError: If it is too large, or takes too long.
            ClientDisconnect: If the client has left.
        """
        body = bytearray()
        try:
            with anyio.fail_after(BODY_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.settings.body_bytes:
                        raise self._too_large()
        except TimeoutError as error:
            raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} seconds") from error
        return body

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is too large; accepted: up to {self.settings.body_bytes} bytes", "body_too_large"
        )

    def _prepare(self, body: bytearray) -> Completion:
        """Read what is asked; in a thread, since a long text takes its time.

        Raises:
            ApiError: If it asks for another model.
            UserError: If it is not valid.
        """
        chat = read_body(body, allow_urls=self.settings.allow_urls)
        if chat.model is not None and chat.model not in self.settings.models:
            raise ApiError(
                404,
                f"there is no model {chat.model[:100]!r} here; accepted: {self.settings.models[0]}",
                "model_not_found",
                "model",
            )
        ids = tokenizer_image_token(self._assistant.render(chat.request), self._assistant.tokenizer)
        return Completion(chat, self.settings.models[0], len(ids) - len(chat.request.images))

    async def _fetch(self, images: Sequence[ImageSource]) -> None:
        """Fetch what is to be fetched before the request takes a place: a slow server holds up nobody else.

        Raises:
            UserError: If an image cannot be fetched.
        """
        for image in images:
            if isinstance(image, RemoteImage):
                await anyio.to_thread.run_sync(image.fetch, abandon_on_cancel=True, limiter=self._fetchers)

    async def _answer(self, completion: Completion, reply: Reply, began: float) -> Answer:
        """Answer, and send the pieces of a stream; the place is free again before the end is sent."""
        answer: Answer | None = None
        is_first = True
        stream = stream_answer(self._assistant, completion.chat.request, self._limiter)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                if is_first:
                    self.metrics.first_token.observe(time.monotonic() - began)
                    if completion.chat.stream:
                        await reply.event(completion.first())
                    is_first = False
                if isinstance(piece, Answer):
                    answer = piece
                elif completion.chat.stream:
                    await reply.event(completion.piece(piece))
        assert answer is not None
        self.metrics.add(answer.cost, completion.text_tokens, time.monotonic() - began)
        return answer


async def _cancel_when_gone(request: Request, scope: anyio.CancelScope) -> None:
    """Cancel the work on a request, whose body has been read, when its client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class KeyGuard:
    """Lets only those in who have the key.

    Args:
        app: What is guarded.
        key: Of all requests but those of the server's health.
        metrics: Count who is refused.
    """

    def __init__(self, app: ASGIApp, key: str, metrics: Metrics) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request, or refuse it."""
        if scope["type"] != "http" or scope["path"] == _OPEN_PATH:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self._app(scope, receive, send)
            return
        self._metrics.requests[401] += 1
        sentence = "the API key is wrong" if given else "there is no API key"
        refusal = ApiError(401, f"{sentence}; send the header Authorization: Bearer KEY", "invalid_api_key")
        await refusal.response()(scope, receive, send)


def build_app(completions: ChatCompletions) -> FastAPI:
    """Build the application with all its routes."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    settings, began = completions.settings, int(time.time())
    if settings.api_key is not None:
        app.add_middleware(KeyGuard, key=settings.api_key, metrics=completions.metrics)
    app.router.routes.append(Route("/v1/chat/completions", completions, methods=["POST"]))

    @app.get(_OPEN_PATH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": settings.models[0], "object": "model", "created": began, "owned_by": "llava"}
        return {"object": "list", "data": [model]}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = completions.metrics.render(completions.running, completions.waiting)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def refuse(request: Request, error: HTTPException) -> Response:
        sentence = f"{request.method} {request.url.path} is not served here: {error.detail}"
        return ApiError(error.status_code, sentence, headers=error.headers).response()

    return app


class ApiServer(uvicorn.Server):
    """A server that ends within bounded time, and tells those whose answers are not finished by then.

    Args:
        completions: What it serves.
    """

    def __init__(self, completions: ChatCompletions) -> None:
        super().__init__(
            uvicorn.Config(
                build_app(completions),
                log_config=None,
                ws="none",
                timeout_graceful_shutdown=round(GRACE_SECONDS) + 5,
            )
        )
        self._completions = completions

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running answers finish, for a while."""
        asyncio.get_running_loop().call_later(GRACE_SECONDS, self._completions.stop)
        await super().shutdown(sockets)
