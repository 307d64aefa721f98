"""What every engine does with its requests: they wait, may be cancelled, and become text token by token.

Shapes: L positions of a prompt, H width of the language model.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llava.engine.answer_text import AnswerText
from llava.engine.base import Event, FinishReason, Generation


@dataclass(slots=True)
class WaitingRequest:
    """A request that waits for its prefill."""

    id: int
    embeddings: Tensor  # (L, H)
    generation: Generation
    prefix: tuple[int, ...] = ()

    @property
    def positions(self) -> int:
        """Positions that it may come to need."""
        return len(self.embeddings) + self.generation.max_new_tokens


@dataclass(slots=True)
class RunningAnswer:
    """An answer that grows.

    Attributes:
        id: Of its request.
        generation: How it is written.
        text: What there is of it.
        end_ids: Tokens that end it.
    """

    id: int
    generation: Generation
    text: AnswerText
    end_ids: frozenset[int]

    def advance(self, token: int, milliseconds: float) -> Event:
        """Add a token and say what that means for the request."""
        if token in self.end_ids:
            return self.end("stop", milliseconds)
        text = self.text.push(token)
        if self.text.stopped:
            return Event(self.id, token, text, "stop", milliseconds)
        if len(self.text.ids) >= self.generation.max_new_tokens:
            return Event(self.id, token, text + self.text.finish(), "length", milliseconds)
        return Event(self.id, token, text, None, milliseconds)

    def end(self, reason: FinishReason, milliseconds: float = 0.0) -> Event:
        """End without another token."""
        return Event(self.id, None, self.text.finish(), reason, milliseconds)


class RequestQueue:
    """The part of an engine that any thread may use: requests come here, and are cancelled here.

    Args:
        tokenizer: Of the language model.
        generation_config: Of the checkpoint; its end tokens count beside the tokenizer's.
        settings: See `Engine`.
        max_length: See `Engine`.

    Attributes:
        tokenizer: As given.
        end_ids: Tokens that end every answer.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        generation_config: Any,
        settings: Mapping[str, Any],
        max_length: int | None = None,
    ) -> None:
        configured = generation_config.eos_token_id
        named = configured if isinstance(configured, list) else [configured]
        self.settings = settings
        self.max_length = max_length
        self.tokenizer = tokenizer
        self.end_ids = sorted({end for end in (tokenizer.eos_token_id, *named) if end is not None})
        self._special_tokens = tokenizer.get_added_vocab()
        self._ids = count()
        # Of what other threads than the stepping one may change, and this one when garbage is collected.
        self._lock = threading.RLock()
        self._waiting: deque[WaitingRequest] = deque()
        self._cancelled: set[int] = set()

    def clear_prefixes(self) -> None:
        """Forget nothing; see `Engine.clear_prefixes`."""

    def check(self, generation: Generation) -> None:
        """Refuse nothing; see `Engine.check`."""

    def submit(self, embeddings: Tensor, generation: Generation, prefix: tuple[int, ...] = ()) -> int:
        """Add a request with the embeddings (L, H) of its prompt; see `Engine.submit`."""
        with self._lock:
            request = WaitingRequest(next(self._ids), embeddings, generation, prefix)
            self._waiting.append(request)
            return request.id

    def cancel(self, request: int) -> None:
        """End a request; see `Engine.cancel`."""
        with self._lock:
            self._cancelled.add(request)

    def clear(self) -> None:
        """Forget all requests that wait; see `Engine.clear`."""
        with self._lock:
            self._waiting.clear()
            self._cancelled.clear()

    def _take_waiting(self) -> list[WaitingRequest]:
        """Return all that wait, which do no longer."""
        with self._lock:
            taken, self._waiting = list(self._waiting), deque()
        return taken

    def _take_cancelled(self, running: Collection[int]) -> list[int]:
        """Forget those that wait and are cancelled; return these and the cancelled ones of the running."""
        with self._lock:
            cancelled, self._cancelled = self._cancelled, set()
            known = {request.id for request in self._waiting}.union(running)
            self._waiting = deque(one for one in self._waiting if one.id not in cancelled)
        return sorted(cancelled & known)

    def _ends_of(self, generation: Generation) -> frozenset[int]:
        """Return the tokens that end an answer; a special token as stop text has no text to be found in."""
        special = self._special_tokens
        return frozenset(self.end_ids) | {special[stop] for stop in generation.stop if stop in special}


def seed_of(generation: Generation) -> int:
    """Return the seed of a request's sampling: its own, or one drawn from PyTorch's generator."""
    return int(torch.randint(2**63 - 1, ())) if generation.seed is None else generation.seed
