"""What LLaVA's controller and workers share as servers: a socket, an app, a stream of chunks, a clean end."""

import logging
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from llava.errors import UserError
from llava.serve.protocol import Chunk, ErrorCode, RefusalError, is_loopback

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI, Request
    from starlette.responses import StreamingResponse

logger = logging.getLogger(__name__)

GRACE_S = 10  # that running answers have when a server ends
SLOWEST_CLIENT_S = 30.0  # for a chunk; one that reads less keeps others waiting


def check_installed() -> None:
    """Refuse to serve without what that needs.

    Raises:
        UserError: If something is not installed.
    """
    if any(find_spec(name) is None for name in ("fastapi", "httpx", "uvicorn")):
        raise UserError("serving needs fastapi, httpx and uvicorn: pip install 'llava[serve]'")


def create_plain_app(lifespan: Callable[[Any], Any] | None = None) -> "FastAPI":
    """Return an app, of a worker or a controller, that has no pages of its own and says why it refuses."""
    from fastapi import FastAPI, Request
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse, Response

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.exception_handler(RefusalError)
    async def refuse(_: Request, error: RefusalError) -> JSONResponse:
        return JSONResponse(error.body, error.status)

    @app.exception_handler(ClientDisconnect)
    async def leave(*_: Any) -> Response:
        return Response(status_code=400)  # for nobody: the client went away while it sent its request

    return app


def stream_chunks(request: "Request", chunks: AsyncGenerator[bytes, None]) -> "StreamingResponse":
    """Return a response of chunks, which ends when the client goes away or stops reading, or the server ends.

    Args:
        request: Of a server from `create_server`.
        chunks: Closed at the end, in the task that ran it.
    """
    import anyio
    from starlette.responses import StreamingResponse
    from starlette.types import Message, Send

    async def until_stopped() -> AsyncGenerator[bytes, None]:
        async for chunk in chunks:
            if request.app.state.is_stopping():
                yield Chunk("the server was stopped before the answer had ended", ErrorCode.WORKER).encode()
                return
            yield chunk

    class ChunkResponse(StreamingResponse):
        async def stream_response(self, send: Send) -> None:
            async def send_in_time(message: Message) -> None:
                with anyio.fail_after(SLOWEST_CLIENT_S):
                    await send(message)

            async with aclosing(chunks), aclosing(stopping):
                with suppress(TimeoutError):
                    await super().stream_response(send_in_time)

    stopping = until_stopped()
    return ChunkResponse(stopping, media_type="application/octet-stream")


def create_server(app: "FastAPI") -> "uvicorn.Server":
    """Return a server of an app, which tells the app that it ends, and leaves running answers some time."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE_S
        )
    )
    app.state.is_stopping = lambda: server.should_exit
    return server


def warn_if_open(host: str, advice: str = "LLaVA's protocol has no key for clients") -> None:
    """Warn of a server that machines other than this one reach, and that lets anybody ask.

    Args:
        host: Where it listens.
        advice: Ends the warning.
    """
    if not is_loopback(host):
        logger.warning("other machines reach the server at %s, and anybody there may ask: %s", host, advice)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address of this machine.

    Raises:
        UserError: If that is not possible.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the server cannot listen at {host}:{port}: {reason}") from error
