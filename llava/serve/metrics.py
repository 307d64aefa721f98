"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from llava.messages import Cost

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)  # seconds


@dataclass(slots=True)
class Histogram:
    """Durations, counted by their length.

    Attributes:
        counts: Durations of up to each of `BOUNDS`, and above the one before it.
        number: All durations, also those above the last bound.
        seconds: Their sum.
    """

    counts: list[int] = field(default_factory=lambda: [0] * len(BOUNDS))
    number: int = 0
    seconds: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.number += 1
        self.seconds += seconds
        for index, bound in enumerate(BOUNDS):
            if seconds <= bound:
                self.counts[index] += 1
                return

    def samples(self, name: str) -> Iterator[str]:
        """Yield lines; the count of each bound includes those of all smaller ones."""
        total = 0
        for bound, count in zip(BOUNDS, self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound:g}"}} {total}'
        yield f'{name}_bucket{{le="+Inf"}} {self.number}'
        yield f"{name}_sum {self.seconds:.6f}"
        yield f"{name}_count {self.number}"


@dataclass(slots=True)
class Metrics:
    """Counts of a server; its event loop alone changes and reads them.

    Attributes:
        requests: Requests that have ended, by HTTP status.
        prompt_tokens: Of complete answers: text and visual tokens.
        visual_tokens: Likewise, of images alone.
        completion_tokens: Likewise, of the answers.
        patches: Likewise, of images before their reduction.
        first_token: From a request's first byte to the first text of its answer.
        answers: From there to the end of its answer.
    """

    requests: Counter[int] = field(default_factory=Counter)
    prompt_tokens: int = 0
    visual_tokens: int = 0
    completion_tokens: int = 0
    patches: int = 0
    first_token: Histogram = field(default_factory=Histogram)
    answers: Histogram = field(default_factory=Histogram)

    def add(self, cost: Cost, text_tokens: int, seconds: float) -> None:
        """Count a complete answer.

        Args:
            cost: Of the answer.
            text_tokens: Of the prompt without its images.
            seconds: See `answers`.
        """
        self.prompt_tokens += text_tokens + cost.visual_tokens
        self.visual_tokens += cost.visual_tokens
        self.completion_tokens += cost.new_tokens
        self.patches += cost.patches
        self.answers.observe(seconds)

    def render(self, running: int, waiting: int) -> str:
        """Return everything in Prometheus' text format.

        Args:
            running: Requests that are being answered.
            waiting: Requests that are not yet.
        """
        statuses = [f'llava_requests_total{{status="{status}"}} {n}' for status, n in self.requests.items()]
        families = (
            ("llava_requests_total", "counter", "Requests by HTTP status; 499: the client left.", statuses),
            _single("llava_requests_running", "gauge", "Requests that are being answered.", running),
            _single("llava_requests_waiting", "gauge", "Requests that wait for their turn.", waiting),
            _single("llava_prompt_tokens_total", "counter", "Text and visual tokens.", self.prompt_tokens),
            _single("llava_visual_tokens_total", "counter", "Tokens of images.", self.visual_tokens),
            _single("llava_completion_tokens_total", "counter", "Tokens of answers.", self.completion_tokens),
            _single("llava_patches_total", "counter", "Patches before their reduction.", self.patches),
            _histogram("llava_time_to_first_token_seconds", "Time to an answer's start.", self.first_token),
            _histogram("llava_answer_seconds", "Time to an answer's end.", self.answers),
        )
        lines = [
            line
            for name, kind, meaning, samples in families
            for line in (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *samples)
        ]
        return "\n".join(lines) + "\n"


Family = tuple[str, str, str, list[str]]
"""Name, type, meaning and samples."""


def _single(name: str, kind: str, meaning: str, value: int) -> Family:
    return name, kind, meaning, [f"{name} {value}"]


def _histogram(name: str, meaning: str, histogram: Histogram) -> Family:
    return name, "histogram", meaning, list(histogram.samples(name))
