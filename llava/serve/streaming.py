"""Answers of the `Assistant`, which works in threads, for servers that work in an event loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import anyio
import anyio.to_thread

from llava.assistant import Assistant
from llava.messages import Answer, Request


async def stream_answer(
    assistant: Assistant, request: Request, limiter: anyio.CapacityLimiter
) -> AsyncGenerator[str | Answer, None]:
    """Yield an answer's text piece by piece, and at the end the answer itself.

    A reader who goes away, so that the iterator is closed or its task cancelled, ends the work.

    Args:
        assistant: Answers.
        request: What to answer.
        limiter: How many requests are answered at once, a thread for each step of one; others wait.

    Raises:
        UserError: If the request cannot be answered.
    """
    pieces = assistant.stream(request)
    threads = anyio.CapacityLimiter(1)  # of this request alone: those at once are counted by the other
    async with limiter:
        try:
            while True:
                # Waited for even if the task is cancelled: a generator cannot be closed while it runs.
                piece = await anyio.to_thread.run_sync(_next, pieces, limiter=threads)
                yield piece
                if isinstance(piece, Answer):
                    return
        finally:
            pieces.close()


def _next(pieces: Generator[str, None, Answer]) -> str | Answer:
    try:
        return next(pieces)
    except StopIteration as end:
        return end.value
