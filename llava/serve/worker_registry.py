"""What a controller knows: which workers there are, what they serve, when they were last heard of."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

from llava.serve.protocol import HEART_BEAT_LIMIT_S, Registration, WorkerStatus

Dispatch = Literal["lottery", "shortest_queue"]
DISPATCH_METHODS: tuple[Dispatch, ...] = get_args(Dispatch)


@dataclass(slots=True)
class Worker:
    """A worker that a controller knows.

    Attributes:
        name: Its address.
        status: As it was registered.
        check_heart_beat: Whether it must be heard of.
        last_beat: By the registry's clock.
        queue_length: Requests it was last known to have, and those handed to it since.
    """

    name: str
    status: WorkerStatus
    check_heart_beat: bool
    last_beat: float
    queue_length: int


class WorkerRegistry:
    """The workers of a controller; used by one thread.

    Args:
        dispatch: How a worker is chosen: by chance in proportion to speed, or by the shortest queue for its
            speed.
        heart_beat_limit: Seconds without a beat after which a worker is dropped.
        clock: Gives seconds.
        chance: Of the lottery.
    """

    def __init__(
        self,
        dispatch: Dispatch = "shortest_queue",
        heart_beat_limit: float = HEART_BEAT_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.heart_beat_limit = heart_beat_limit
        self._dispatch = dispatch
        self._clock = clock
        self._chance = chance or random.Random()
        self._workers: dict[str, Worker] = {}

    def register(self, registration: Registration, status: WorkerStatus) -> None:
        """Add a worker, or replace what was known of it."""
        self._workers[registration.worker_name] = Worker(
            registration.worker_name,
            status,
            registration.check_heart_beat,
            self._clock(),
            status.queue_length,
        )

    def beat(self, name: str, queue_length: int) -> bool:
        """Take a heart-beat.

        Returns:
            Whether the worker is known; one that is not has to register again.
        """
        worker = self._workers.get(name)
        if worker is None:
            return False
        worker.queue_length = queue_length
        worker.last_beat = self._clock()
        return True

    def remove(self, name: str) -> None:
        """Forget a worker."""
        self._workers.pop(name, None)

    def lose(self, name: str) -> None:
        """Forget a worker that failed if it comes back by itself with its next beat."""
        if name in self._workers and self._workers[name].check_heart_beat:
            self.remove(name)

    def drop_silent(self) -> list[str]:
        """Forget workers whose last beat is too long ago, and return their names."""
        oldest = self._clock() - self.heart_beat_limit
        silent = [
            worker.name
            for worker in self._workers.values()
            if worker.check_heart_beat and worker.last_beat < oldest
        ]
        for name in silent:
            self.remove(name)
        return silent

    def registrations(self) -> list[Registration]:
        """Return all workers as they were registered."""
        return [
            Registration(worker.name, worker.check_heart_beat, worker.status)
            for worker in self._workers.values()
        ]

    def models(self) -> list[str]:
        """Return the names of all models that are served, in order."""
        return sorted({name for worker in self._workers.values() for name in worker.status.model_names})

    def choose(self, model: str, but_not: Collection[str] = ()) -> str | None:
        """Choose a worker for a request, which then counts as one of its queue.

        Args:
            model: Which it must serve.
            but_not: Names of workers that are out of the question.

        Returns:
            Its name; None if there is none.
        """
        serving = [
            worker
            for worker in self._workers.values()
            if model in worker.status.model_names and worker.name not in but_not
        ]
        if not serving:
            return None
        if self._dispatch == "lottery":
            (chosen,) = self._chance.choices(serving, [worker.status.speed for worker in serving])
        else:
            chosen = min(serving, key=lambda worker: worker.queue_length / worker.status.speed)
        chosen.queue_length += 1
        return chosen.name

    def status(self) -> WorkerStatus:
        """Return what all workers are together."""
        workers = self._workers.values()
        return WorkerStatus(
            tuple(self.models()),
            sum(worker.status.speed for worker in workers),
            sum(worker.queue_length for worker in workers),
        )
