"""The processes of a launcher such as ``accelerate launch`` or ``torchrun``, which share the questions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from llava.errors import UserError


@dataclass(frozen=True, slots=True)
class Processes:
    """This process and how many there are.

    Attributes:
        rank: Number of this process, from 0.
        count: Of all processes.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do a part of the work in every process, and go on when all have done it.

        Raises:
            UserError: In all of them, if it is raised in one, so that none waits for another.
        """
        error = None
        try:
            yield
        except UserError as own:
            error = own
        if self.count > 1:
            sentences: list[str | None] = [None] * self.count
            distributed.all_gather_object(sentences, None if error is None else str(error))
            first = next(filter(None, sentences), None)
            error = error or (UserError(first) if first else None)
        if error is not None:
            raise error

    def device(self) -> str | None:
        """Return the device of this process; None leaves the choice, where there is one process only."""
        if self.count == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"

    def sharing(self, device: torch.device) -> int:
        """Return how many processes at most have their models on one device of this machine."""
        here = max(1, min(self.count, _count("LOCAL_WORLD_SIZE", self.count)))
        devices = torch.cuda.device_count() if device.type == "cuda" else 1
        return -(-here // devices)


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """Meet the other processes that the launcher has started, if there are any.

    Raises:
        UserError: If what the launcher has set does not make sense, or they cannot be reached.
    """
    count, rank = _count("WORLD_SIZE", 1), _count("RANK", 0)
    if count > 1 and not distributed.is_initialized():
        try:
            # They only wait for each other, and maybe for long: one may have the longer answers.
            distributed.init_process_group("gloo", timeout=timedelta(days=30))
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"process {rank} of {count} does not reach the others, which a launcher such as torchrun "
                f"arranges: {error}"
            ) from error
    try:
        yield Processes(rank, count)
    finally:
        if count > 1:
            distributed.destroy_process_group()


def _count(variable: str, default: int) -> int:
    """Return a number that a launcher has set in the environment.

    Raises:
        UserError: If it is none.
    """
    text = os.environ.get(variable, str(default))
    if not text.isdecimal():
        raise UserError(f"{variable} is {text!r}; accepted: a whole number, which a launcher sets")
    return int(text)
