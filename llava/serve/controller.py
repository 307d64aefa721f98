"""LLaVA's controller: hands requests to the workers that serve a model; ``python -m llava.serve.controller``.

A worker that is silent is asked whether it lives, and one that dies before it has sent anything is replaced
by another, once.
"""

import asyncio
import logging
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llava.errors import UserError
from llava.options import CommandParser, port_or_any
from llava.serve.protocol import (
    CONTROLLER_PORT,
    DELIMITER,
    KEY_HEADER,
    TIMEOUT_S,
    Chunk,
    ChunkSplitter,
    ErrorCode,
    RefusalError,
    Registration,
    WorkerStatus,
    host_of,
    is_loopback,
    is_same_key,
    key_option,
    parse_object,
    read_body,
    read_number,
    require_field,
)
from llava.serve.web import (
    check_installed,
    create_plain_app,
    create_server,
    listen,
    stream_chunks,
    warn_if_open,
)
from llava.serve.worker_registry import DISPATCH_METHODS, WorkerRegistry
from llava.utils import exit_on_user_error, setup_logging

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

MAX_REPLY_BYTES = 2**20  # of a worker's status or refusal
_Result = TypeVar("_Result")


class WorkerLostError(Exception):
    """A worker is gone; the message says which, and how that showed."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Which workers a controller takes, since it hands them the requests of its clients.

    Attributes:
        hosts: Those that are accepted beside this machine.
        key: Which a worker must show, if there is one; it may then be anywhere.
    """

    hosts: frozenset[str] = frozenset()
    key: str | None = None

    def check_key(self, given: str | None) -> None:
        """Refuse who has not got the key.

        Raises:
            RefusalError: If there is a key and this is not it.
        """
        if self.key is not None and not is_same_key(given, self.key):
            raise RefusalError("this controller takes workers with its --key only; start them with it", 403)

    def check_address(self, address: str) -> None:
        """Refuse a worker by its address.

        Raises:
            RefusalError: If it is on another machine that nobody allowed.
        """
        host = host_of(address)
        if self.key is None and not is_loopback(host) and host not in self.hosts:
            raise RefusalError(
                f"this controller takes workers on loopback only, and {address} is not; start it with "
                f"--allow-worker {host}, or both with the same --key",
                403,
            )


class Controller:
    """Relays requests to workers.

    Args:
        registry: The workers.
        admission: Which are taken.
        patience: Seconds in which a worker has to connect, to send something or else to say that it lives.
    """

    def __init__(
        self, registry: WorkerRegistry, admission: Admission | None = None, patience: float = TIMEOUT_S
    ) -> None:
        import httpx

        self.registry = registry
        self.admission = admission or Admission()
        self.patience = patience
        # A connection that was kept open may be one that its worker has just closed.
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=patience),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
        )

    async def register(self, registration: Registration) -> None:
        """Take a worker.

        Raises:
            RefusalError: If it is not admitted, or is to be asked for its status and does not answer.
        """
        name = registration.worker_name
        self.admission.check_address(name)
        status = registration.status or await self.ask_status(name)
        if status is None:
            raise RefusalError(f"no worker answers at {name}/worker_get_status", 502)
        self.registry.register(registration, status)
        logger.info("registered %s: %s", name, ", ".join(status.model_names))

    async def refresh(self) -> None:
        """Ask all workers for their status, and forget those that do not answer."""
        known = self.registry.registrations()
        found = await asyncio.gather(*(self.ask_status(one.worker_name) for one in known))
        for registration, status in zip(known, found, strict=True):
            if status is None:
                self.registry.remove(registration.worker_name)
                logger.warning("dropped %s, which does not answer", registration.worker_name)
            else:
                self.registry.register(registration, status)

    async def drop_silent_forever(self) -> None:
        """Drop workers whose heart-beats stay away, soon after their time is over."""
        while True:
            await asyncio.sleep(min(1.0, self.registry.heart_beat_limit / 10))
            for name in self.registry.drop_silent():
                logger.warning("dropped %s, whose heart-beats stay away", name)

    async def ask_status(self, name: str) -> WorkerStatus | None:
        """Ask a worker for its status; None if it does not answer in time, or not with a status."""
        import anyio
        import httpx

        try:
            with anyio.fail_after(self.patience):
                async with self.client.stream("POST", f"{name}/worker_get_status") as response:
                    return WorkerStatus.parse(parse_object(await _read_short(response)))
        except (httpx.HTTPError, TimeoutError, UserError):
            return None

    async def generate(self, model: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield the chunks of a worker's answer, or one that says why there are none.

        Args:
            model: Which is asked.
            body: Of the request, as it came.
        """
        lost: list[str] = []
        failure = self._no_worker(model)
        while len(lost) < 2 and (name := self.registry.choose(model, but_not=lost)):
            has_sent = False
            try:
                async with aclosing(self._relay(name, body)) as chunks:
                    async for chunk in chunks:
                        has_sent = True
                        yield chunk
                return
            except WorkerLostError as error:
                logger.warning("%s", error)
                failure = Chunk(str(error), ErrorCode.WORKER_TIMEOUT)
                self.registry.lose(name)
                lost.append(name)
                if has_sent:
                    break
        yield failure.encode()

    def _no_worker(self, model: str) -> Chunk:
        served = ", ".join(self.registry.models()) or "none"
        return Chunk(f"no worker serves the model {model!r:.200}; served: {served}", ErrorCode.NO_WORKER)

    async def _relay(self, name: str, body: bytes) -> AsyncGenerator[bytes, None]:
        """Yield whole chunks of one worker.

        Raises:
            WorkerLostError: If the worker cannot be reached, or breaks off.
        """
        import httpx

        request = self.client.build_request(
            "POST",
            f"{name}/worker_generate_stream",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        splitter = ChunkSplitter()
        has_sent = False
        try:
            response = await self._while_alive(name, self.client.send(request, stream=True))
            try:
                if response.status_code != 200:
                    reply = await self._while_alive(name, _read_short(response))
                    yield _refused(name, response.status_code, reply).encode()
                    return
                pieces = response.aiter_raw()
                while piece := await self._while_alive(name, anext(pieces, b"")):
                    if whole := splitter.push(piece):
                        has_sent = True
                        yield DELIMITER.join([*whole, b""])
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            reason = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise WorkerLostError(f"the worker at {name} was lost: {reason}") from error
        if splitter.rest or not has_sent:
            raise WorkerLostError(f"the worker at {name} was lost: it stopped in the middle of its answer")

    async def _while_alive(self, name: str, work: Awaitable[_Result]) -> _Result:
        """Wait for a worker as long as it takes, provided that it lives.

        A worker may be silent because others are before the request, so that its silence says nothing.

        Raises:
            WorkerLostError: If it is silent and does not say that it lives.
        """

        async def run() -> _Result:
            return await work

        task = asyncio.create_task(run())
        try:
            while not (await asyncio.wait({task}, timeout=self.patience))[0]:
                if await self.ask_status(name) is None and not task.done():
                    raise WorkerLostError(f"the worker at {name} was lost: it is silent")
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})


async def _read_short(response: "httpx.Response") -> bytes:
    """Return a body that has no reason to be long, cut where it is."""
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_REPLY_BYTES:
            break
    return body[:MAX_REPLY_BYTES]


def _refused(name: str, status: int, body: bytes) -> Chunk:
    """Return what a worker said instead of an answer."""
    try:
        reason = parse_object(body).get("detail")
    except UserError:
        reason = None
    return Chunk(str(reason or f"the worker at {name} replied with HTTP status {status}"), ErrorCode.WORKER)


def create_app(controller: Controller) -> "FastAPI":
    """Serve a controller at LLaVA's addresses."""

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        dropping = asyncio.create_task(controller.drop_silent_forever())
        yield
        dropping.cancel()
        await controller.client.aclose()

    app = create_plain_app(lifespan)
    _add_worker_routes(app, controller)
    _add_client_routes(app, controller)
    return app


def _add_worker_routes(app: "FastAPI", controller: Controller) -> None:
    """Add what workers call."""
    from fastapi import Request

    async def read_admitted(request: Request) -> dict[str, Any]:
        controller.admission.check_key(request.headers.get(KEY_HEADER))
        return parse_object(await read_body(request))

    @app.post("/register_worker")
    async def register_worker(request: Request) -> None:
        await controller.register(Registration.parse(await read_admitted(request)))

    @app.post("/receive_heart_beat")
    async def receive_heart_beat(request: Request) -> dict[str, bool]:
        body = await read_admitted(request)
        name = require_field(body, "worker_name", str).rstrip("/")
        return {"exist": controller.registry.beat(name, int(read_number(body, "queue_length", 0)))}


def _add_client_routes(app: "FastAPI", controller: Controller) -> None:
    """Add what clients call; all together look like one worker."""
    from fastapi import Request
    from starlette.responses import StreamingResponse

    @app.post("/refresh_all_workers")
    async def refresh_all_workers() -> None:
        await controller.refresh()

    @app.post("/list_models")
    async def list_models() -> dict[str, list[str]]:
        return {"models": controller.registry.models()}

    @app.post("/get_worker_address")
    async def get_worker_address(request: Request) -> dict[str, str]:
        model = require_field(parse_object(await read_body(request)), "model", str)
        return {"address": controller.registry.choose(model) or ""}

    @app.post("/worker_get_status")
    async def worker_get_status() -> dict[str, Any]:
        return controller.registry.status().body

    @app.post("/worker_generate_stream")
    async def worker_generate_stream(request: Request) -> StreamingResponse:
        body = await read_body(request)
        model = require_field(parse_object(body), "model", str)
        return stream_chunks(request, controller.generate(model, body))


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run a controller until it is interrupted.

    Args:
        argv: Arguments; those of the process if not given.

    Raises:
        UserError: If an option does not serve, or the port is taken.
    """
    parser = CommandParser(prog="python -m llava.serve.controller", description="Hand requests to workers.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=port_or_any, default=CONTROLLER_PORT, help=f"(default: {CONTROLLER_PORT})"
    )
    parser.add_argument(
        "--dispatch-method",
        choices=DISPATCH_METHODS,
        default="shortest_queue",
        help="how a worker is chosen (default: shortest_queue)",
    )
    parser.add_argument(
        "--allow-worker",
        action="append",
        default=[],
        metavar="HOST",
        help="take workers on this host as well as on loopback; may be given several times",
    )
    parser.add_argument(
        "--key", type=key_option, help="take workers, wherever they are, that were started with this key"
    )
    options = parser.parse_args(argv)
    check_installed()
    setup_logging()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it reports every request
    registry = WorkerRegistry(options.dispatch_method)
    admission = Admission(frozenset(host.lower() for host in options.allow_worker), options.key)
    server = create_server(create_app(Controller(registry, admission)))
    warn_if_open(options.host)
    with listen(options.host, options.port) as listening:
        logger.info("controller at http://%s:%d", options.host, listening.getsockname()[1])
        server.run(sockets=[listening])


if __name__ == "__main__":
    sys.exit(main())
