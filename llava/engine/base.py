"""What every engine does: takes prompts as embeddings, gives back events.

Shapes: L positions of a prompt, H width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, Protocol

from torch import Tensor

from llava.errors import UserError

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Generation:
    """How an answer is written.

    Attributes:
        max_new_tokens: The most tokens of one answer.
        temperature: 0 always takes the likeliest token, and so does all below 0.001, as in LLaVA's servers;
            above, the distribution is sharpened (< 1) or flattened (> 1).
        top_p: Sample from the likeliest tokens that together have this probability.
        num_beams: Beams of a beam search; 1 for none.
        seed: Of the sampling; by default drawn from PyTorch's generator.
        stop: Texts that end the answer and are left out of it.
        repetition_penalty: Above 1 makes tokens of the answer less likely to come again.
        min_new_tokens: The fewest tokens of one answer, unless a text of ``stop`` ends it.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse what no engine can do.

        Raises:
            UserError: If a value is of another type or out of its range.
        """
        for name, value in {one.name: getattr(self, one.name) for one in fields(self)}.items():
            if not _is_of_kind(name, value):
                raise UserError(f"{name} is {value!r}; accepted: {_KINDS[name][1]}")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        accepted = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (self.temperature >= 0 and math.isfinite(self.temperature), "0 (greedy) or more"),
            "top_p": (self.top_p is None or 0 < self.top_p <= 1, "above 0, up to 1"),
            "num_beams": (self.num_beams >= 1, "1 or more"),
            "seed": (self.seed is None or 0 <= self.seed < 2**63, "0 or more, below 2**63"),
            "stop": (all(self.stop), "texts that are not empty"),
            "repetition_penalty": (
                self.repetition_penalty > 0 and math.isfinite(self.repetition_penalty),
                "above 0; 1 is none",
            ),
            "min_new_tokens": (0 <= self.min_new_tokens <= self.max_new_tokens, "0 to max_new_tokens"),
        }
        for name, (fits, words) in accepted.items():
            if not fits:
                raise UserError(f"{name} is {getattr(self, name)}; accepted: {words}")

    def within(self, tokens: int) -> Generation:
        """Return the same with no more than so many new tokens, 1 or more."""
        if self.max_new_tokens <= tokens:
            return self
        return replace(self, max_new_tokens=tokens, min_new_tokens=min(self.min_new_tokens, tokens))

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn by chance."""
        return self.temperature >= 0.001


_WHOLE, _NUMBER, _TEXTS = (Integral, "a whole number"), (Real, "a number"), (str, "a text, or several")
_KINDS: dict[str, tuple[type, str]] = {
    "max_new_tokens": _WHOLE,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "num_beams": _WHOLE,
    "seed": _WHOLE,
    "stop": _TEXTS,
    "repetition_penalty": _NUMBER,
    "min_new_tokens": _WHOLE,
}
"""Of what type a setting of `Generation` is, and how an error says so."""


def _is_of_kind(name: str, value: Any) -> bool:
    """Tell whether a value is of the type of this setting of `Generation`."""
    if value is None:
        return name in ("top_p", "seed")
    if name == "stop" and not isinstance(value, str):
        return isinstance(value, Iterable) and all(isinstance(text, str) for text in value)
    return isinstance(value, _KINDS[name][0]) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a request.

    Attributes:
        id: The request's, from `Engine.submit`.
        token: A new token, if there is one; end-of-sequence tokens are not given out.
        text: What has become certain of the answer's text.
        finished: Why the answer has ended, if it has; it is the request's last event.
        milliseconds: This request's share of the time that the step took.
    """

    id: int
    token: int | None = None
    text: str = ""
    finished: FinishReason | None = None
    milliseconds: float = 0.0


class Engine(Protocol):
    """Runs the language model for many requests at once.

    `submit` and `cancel` may be called from any thread at any time, `step` by one thread at a time.

    Attributes:
        max_length: Positions that one request may have, prompt and answer; None for no limit but the model's.
        settings: What answers depend on beside what embeds the prompts, to be compared.
    """

    max_length: int | None
    settings: Mapping[str, Any]

    def check(self, generation: Generation) -> None:
        """Refuse what this engine cannot do.

        Raises:
            UserError: If an answer cannot be written in this way.
        """

    def submit(self, embeddings: Tensor, generation: Generation, prefix: tuple[int, ...] = ()) -> int:
        """Add a request, which enters between two steps.

        Args:
            embeddings: Of the prompt, (L, H).
            generation: How the answer is written.
            prefix: Ids of the text that the prompt begins with, where other prompts may begin with it too.

        Returns:
            The id that its events bear.
        """

    def cancel(self, request: int) -> None:
        """End a request; its last event says ``cancelled``. Nothing happens if it has ended."""

    def step(self) -> list[Event]:
        """Run one step of all requests, and return what happened; nothing if there are none."""

    def clear_prefixes(self) -> None:
        """Forget what prompts began with, because the weights have changed."""

    def clear(self) -> None:
        """Forget all requests without an event, after a step that failed."""
