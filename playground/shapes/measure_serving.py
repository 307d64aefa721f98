"""A server under load: many clients at once, pictures of different sizes; nothing lost, nothing different.

Each setting gets a server of its own, ``llava serve`` in another process. Every request is asked alone first;
under load, each must get exactly one complete answer, and the same. Measured are requests per second, and the
time to the first token as clients see it: the upload, decoding the picture and the queue are in it.
"""

import asyncio
import base64
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from llava.errors import UserError
from llava.markdown import markdown_table
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.shapes.measure import describe_machine, write_numbers
from playground.shapes.questions import ask_several
from playground.shapes.world import HELD_OUT, Scene, stream

FIRST_SEED = 7_000_000
QUESTIONS_PER_PICTURE = 2
SIDES = (160, 1000)  # of pictures, in pixels
TIMEOUT_S = 600.0
START_S = 300.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a request.

    Attributes:
        text: The answer.
        first_s: Until its first piece.
        visual_tokens: That its picture became.
    """

    text: str
    first_s: float
    visual_tokens: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a server did under load.

    Attributes:
        engine: That ran the language model.
        reduction: Of visual tokens.
        requests: How many were sent, and got one complete answer each.
        different: How many of the answers are not those to the request alone.
        visual_tokens: Mean of a request.
        per_second: Requests.
        first_p50_ms: Time to the first token, median.
        first_p95_ms: The same, which 95% stay below.
    """

    engine: str
    reduction: str
    requests: int
    different: int
    visual_tokens: float
    per_second: float
    first_p50_ms: float
    first_p95_ms: float


def make_bodies(pictures: int, max_tokens: int) -> list[dict[str, Any]]:
    """Draw held-out scenes in many sizes, and return requests about each."""
    bodies = []
    for seed in HELD_OUT[FIRST_SEED : FIRST_SEED + pictures]:
        scene, file = Scene.from_seed(seed), io.BytesIO()
        sides = random.Random(seed)
        scene.render().resize((sides.randint(*SIDES), sides.randint(*SIDES))).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        for question in ask_several(scene, stream(seed, "words"), QUESTIONS_PER_PICTURE):
            parts = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": question.text},
            ]
            bodies.append(
                {
                    "messages": [{"role": "user", "content": parts}],
                    **{"max_tokens": max_tokens, "temperature": 0},
                    **{"stream": True, "stream_options": {"include_usage": True}},
                }
            )
    return bodies


@contextmanager
def serving(engine: str, reduction: str, more: Sequence[str]) -> Iterator[str]:
    """Start a server, and yield its address.

    Raises:
        UserError: If it does not start.
    """
    command = [sys.executable, "-m", "llava.main", "serve", "--port", "0", "--token-reduction", reduction]
    with tempfile.TemporaryFile("w+") as log:  # it reports every request
        process = subprocess.Popen(
            [*command, "--engine", engine, "--queue", "1000", *more],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert process.stdout is not None
        try:
            lines = (line for line in process.stdout if " is served at " in line)
            if (line := next(lines, None)) is None:
                log.seek(0)
                raise UserError(f"the server with the engine {engine!r} does not start: {log.read()[-500:]}")
            url = line.split(" at ")[1].strip()
            _wait_until_healthy(url.removesuffix("/v1"))
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _wait_until_healthy(url: str) -> None:
    give_up = time.monotonic() + START_S
    while time.monotonic() < give_up:
        try:
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise UserError(f"the server at {url} does not answer")


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Reply:
    """Send a request and read its stream.

    Raises:
        UserError: If it does not get exactly one complete answer.
    """
    began, first, text, ends = time.perf_counter(), 0.0, "", 0
    usage: dict[str, Any] = {}
    async with client.stream("POST", "/chat/completions", json=body) as response:
        if not response.is_success:
            raise UserError(f"status {response.status_code}: {(await response.aread()).decode()[:200]}")
        is_done = False
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            is_done |= data == "[DONE]"
            if not line.startswith("data: ") or is_done:
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                raise UserError(f"the answer ends with an error: {chunk['error']}")
            usage = chunk.get("usage") or usage
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                first = first or (time.perf_counter() - began if piece else 0.0)
                text += piece
                ends += choice.get("finish_reason") is not None
    if ends != 1 or not is_done:
        raise UserError(f"an answer has {ends} ends; it is not complete: {text!r:.80}")
    first = first or time.perf_counter() - began  # an empty answer
    return Reply(text, first, int(usage.get("prompt_tokens_details", {}).get("visual_tokens", 0)))


async def ask_all(url: str, bodies: Sequence[dict[str, Any]], clients: int) -> tuple[list[Reply], float]:
    """Have clients ask, each one request after the other; return the replies, and the seconds of all."""
    limits = httpx.Limits(max_connections=clients)
    waiting = iter(range(len(bodies)))
    replies: dict[int, Reply] = {}
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client:

        async def ask_on() -> None:
            for number in waiting:
                replies[number] = await ask(client, bodies[number])

        began = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(clients)))
        seconds = time.perf_counter() - began
    return [replies[number] for number in range(len(bodies))], seconds


def measure(
    engine: str,
    reduction: str,
    bodies: Sequence[dict[str, Any]],
    requests: int,
    clients: int,
    more: Sequence[str],
) -> Load:
    """Start a server, ask every request alone, and then many at once.

    Raises:
        UserError: If a request does not get exactly one complete answer.
    """
    with serving(engine, reduction, more) as url:
        alone, _ = asyncio.run(ask_all(url, bodies, 1))
        order = random.Random(0).choices(range(len(bodies)), k=requests)
        replies, seconds = asyncio.run(ask_all(url, [bodies[number] for number in order], clients))
    firsts = [1000 * reply.first_s for reply in replies]
    cuts = quantiles(firsts, n=20)
    return Load(
        engine=engine,
        reduction=reduction,
        requests=len(replies),
        different=sum(reply.text != alone[number].text for reply, number in zip(replies, order, strict=True)),
        visual_tokens=sum(reply.visual_tokens for reply in replies) / len(replies),
        per_second=len(replies) / seconds,
        first_p50_ms=cuts[9],
        first_p95_ms=cuts[18],
    )


def table(loads: Sequence[Load]) -> str:
    """Return the measurements as a table in Markdown."""
    header = (
        "engine",
        "reduction",
        "visual tokens",
        "requests/s",
        "first token, p50",
        "p95",
        "different answers",
    )
    rows = [
        (
            load.engine,
            f"`{load.reduction}`",
            f"{load.visual_tokens:.1f}",
            f"{load.per_second:.1f}",
            *(f"{milliseconds:.0f} ms" for milliseconds in (load.first_p50_ms, load.first_p95_ms)),
            f"{load.different} of {load.requests}",
        )
        for load in loads
    ]
    return markdown_table(header, rows, aligned=False)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Put servers under load, one after the other."""
    parser = CommandParser(prog="python -m playground.shapes.measure_serving", description=main.__doc__)
    parser.add_argument("--engine", nargs="+", default=["transformers"], help="default: transformers")
    parser.add_argument(
        "--token-reduction", nargs="+", default=["none", "TRIM:-1"], help="default: none TRIM:-1"
    )
    parser.add_argument("--clients", type=positive, default=32, help="at once (default: 32)")
    parser.add_argument("--requests", type=positive, default=500, help="of all clients (default: 500)")
    parser.add_argument("--pictures", type=positive, default=50, help="two questions each (default: 50)")
    parser.add_argument("--new-tokens", type=positive, default=32, help="of an answer at most (default: 32)")
    parser.add_argument("--output", type=Path, help="also write the numbers to this JSON file")
    parser.add_argument("serve", nargs="*", help="after --: further options of `llava serve`")
    options = parser.parse_args(argv)
    if options.requests < 2:
        raise UserError("--requests is 1; accepted: 2 or more, since the times of one have no quantiles")
    bodies = make_bodies(options.pictures, options.new_tokens)
    loads = [
        measure(engine, reduction, bodies, options.requests, options.clients, options.serve)
        for engine in options.engine
        for reduction in options.token_reduction
    ]
    print(table(loads))
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    numbers = {"machine": describe_machine(), "settings": settings, "loads": [asdict(load) for load in loads]}
    write_numbers(numbers, options.output)


if __name__ == "__main__":
    sys.exit(main())
