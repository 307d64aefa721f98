"""Lets several threads wait for the events of one engine: whoever waits runs its next step."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Collection

from torch import Tensor

from llava.engine.base import Engine, Event, Generation


class Router:
    """Hands every event of an engine to the thread that waits for it.

    No thread of its own runs the engine: the first that waits runs a step for all, and an engine that
    nobody waits for stands still.

    Args:
        engine: Driven by this router alone.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._condition = threading.Condition()
        self._is_stepping = False
        self._has_cancelled = False  # since the last step began
        self._events: dict[int, deque[Event | RuntimeError]] = {}

    def submit(self, embeddings: Tensor, generation: Generation, prefix: tuple[int, ...] = ()) -> int:
        """Add a request with embeddings (L, H), see `Engine.submit`; events are kept until they are taken."""
        with self._condition:
            request = self._engine.submit(embeddings, generation, prefix)
            self._events[request] = deque()
            return request

    def cancel(self, request: int) -> None:
        """End a request whose events nobody will take any more."""
        with self._condition:
            if self._events.pop(request, None) is not None:
                self._engine.cancel(request)
                self._has_cancelled = True
                self._let_go()

    def wait(self, requests: Collection[int]) -> Event:
        """Return the next event of one of these requests.

        Raises:
            RuntimeError: If a step of the engine failed, for every request that was in it; in the thread that
                ran the step what the engine raised.
        """
        while True:
            with self._condition:
                event = self._take(requests)
                if isinstance(event, RuntimeError):
                    raise event
                if event is not None:
                    self._let_go()
                    return event
                if self._is_stepping:
                    self._condition.wait()
                    continue
                self._is_stepping = True
                # Held from here on for all but the step itself, so that nothing can leave others waiting.
                self._step()

    def _let_go(self) -> None:
        """Let the engine free what cancelled requests hold, if nobody is left whose next step would."""
        if self._has_cancelled and not self._events and not self._is_stepping:
            self._is_stepping = True
            with contextlib.suppress(Exception):  # nobody asked for this step; the engine is clear after it
                self._step()

    def _take(self, requests: Collection[int]) -> Event | RuntimeError | None:
        for request in requests:
            if events := self._events[request]:
                event = events.popleft()
                if isinstance(event, RuntimeError) or event.finished:
                    del self._events[request]
                return event
        return None

    def _step(self) -> None:
        """Run a step without the lock, which is held, and hand out what happened, or that it failed."""
        events: list[Event] = []
        self._has_cancelled = False
        try:
            self._condition.release()
            try:
                events = self._engine.step()
            finally:
                self._condition.acquire()
        except BaseException as error:
            for waiting in list(self._events.values()):
                waiting.append(RuntimeError(f"the engine failed: {type(error).__name__}: {error}"))
            with contextlib.suppress(Exception):  # a device that failed may fail again
                self._engine.clear()
            raise
        finally:
            self._is_stepping = False
            for event in events:
                if event.id in self._events:
                    self._events[event.id].append(event)
            self._condition.notify_all()
