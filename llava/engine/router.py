"""Lets several threads wait for the events of one engine: whoever waits runs its next step."""

from __future__ import annotations

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
        self._events: dict[int, deque[Event | BaseException]] = {}

    def submit(self, embeddings: Tensor, generation: Generation) -> int:
        """Add a request with the embeddings (L, H) of its prompt; events are kept until they are taken."""
        with self._condition:
            request = self._engine.submit(embeddings, generation)
            self._events[request] = deque()
            return request

    def cancel(self, request: int) -> None:
        """End a request whose events nobody will take any more."""
        with self._condition:
            if self._events.pop(request, None) is not None:
                self._engine.cancel(request)

    def wait(self, requests: Collection[int]) -> Event:
        """Return the next event of one of these requests.

        Raises:
            Exception: What a step of the engine raised, for every request that was in it.
        """
        while True:
            with self._condition:
                event = self._take(requests)
                if isinstance(event, BaseException):
                    raise event
                if event is not None:
                    return event
                if self._is_stepping:
                    self._condition.wait()
                    continue
                self._is_stepping = True
            self._step()

    def _take(self, requests: Collection[int]) -> Event | BaseException | None:
        for request in requests:
            if events := self._events[request]:
                event = events.popleft()
                if isinstance(event, BaseException) or event.finished:
                    del self._events[request]
                return event
        return None

    def _step(self) -> None:
        """Run a step and hand out what happened, or to everybody that it failed."""
        events: list[Event] = []
        failure: BaseException | None = None
        try:
            events = self._engine.step()
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits, this thread among them
            failure = error
            self._engine.clear()
        with self._condition:
            self._is_stepping = False
            for event in events:
                if event.id in self._events:
                    self._events[event.id].append(event)
            if failure is not None:
                for waiting in self._events.values():
                    waiting.append(failure)
            self._condition.notify_all()
