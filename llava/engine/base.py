"""What every engine does: takes a prompt as embeddings, gives back a stream of tokens.

Shapes: L_i positions of prompt i, H width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from llava.errors import UserError


@dataclass(frozen=True, slots=True)
class Generation:
    """How an answer is written.

    Attributes:
        max_new_tokens: The most tokens of one answer.
        temperature: 0 always takes the likeliest token, and so does all below 0.001, as in LLaVA's servers;
            above, the distribution is sharpened (< 1) or flattened (> 1).
        top_p: Sample from the likeliest tokens that together have this probability.
        num_beams: Beams of a beam search; 1 for none.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        """Refuse what no engine can do.

        Raises:
            UserError: If a value is out of its range.
        """
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; accepted: 1 or more")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature is {self.temperature}; accepted: 0 (greedy) or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; accepted: above 0, up to 1")
        if self.num_beams < 1:
            raise UserError(f"num_beams is {self.num_beams}; accepted: 1 or more")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn by chance."""
        return self.temperature >= 0.001


class Engine(Protocol):
    """Runs the language model."""

    def stream(self, prompts: Sequence[Tensor], options: Generation) -> Iterator[list[int | None]]:
        """Continue a batch of prompts, step by step; closing the iterator ends the work.

        Args:
            prompts: Embeddings, one (L_i, H) each.
            options: How the answers are written.

        Yields:
            The next token of every prompt, None where its answer has ended; end-of-sequence tokens are not
            given out.
        """
