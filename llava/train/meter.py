"""What a training run reads: visual tokens per image, tokens and images per second, records left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.prompt_encoder import PromptEncoder, ReducedImage


class TrainingMeter:
    """Counts on every process what it reads, and sums it up over all of them for the log."""

    def __init__(self) -> None:
        self.skipped_before = 0
        self._start_over()

    def _start_over(self) -> None:
        self.started: float | None = None  # begins with a step, not with what is set up before the first one
        self.text_tokens = 0
        self.skipped = 0
        self.visual_tokens: list[int] = []  # per image that was shown

    def watch(self, encoder: PromptEncoder) -> None:
        """Count from now on what is left of each image in the prompts that an encoder embeds."""
        encoder.observers.append(self._count_visual_tokens)

    def _count_visual_tokens(self, images: Sequence[ReducedImage]) -> None:
        self.visual_tokens += [sum(image.crops.counts) for image in images]

    def read(self, batch: dict[str, Any], run: Callable[[], Any]) -> Any:
        """Run a step on a batch, and count what it reads.

        Args:
            batch: What the collator made; its ``skipped``, no input of the model, is taken out.
            run: The step.

        Returns:
            What the step returns.
        """
        self.started = self.started or time.monotonic()
        self.skipped += int(batch.pop("skipped", 0))
        ids: Tensor = batch["input_ids"]
        shows_images = bool((ids == IMAGE_TOKEN_INDEX).any())
        self.text_tokens += int(batch["attention_mask"].sum() - (ids == IMAGE_TOKEN_INDEX).sum())
        # The blank image of a batch of text is read by nobody.
        with nullcontext() if shows_images else self.paused():
            return run()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing while the block runs, whose images are shown to nobody or are counted elsewhere."""
        before = len(self.visual_tokens)
        yield
        del self.visual_tokens[before:]

    def summarize(self, gather: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Sum up over all processes what was read since the last time, and start over.

        Args:
            gather: Joins a tensor (1, 6) of every process to (processes, 6).
            device: Where such tensors have to be.

        Returns:
            Values by the names of the log; those of images only if there was one. Skipped records are counted
            from the beginning of the run.
        """
        counts = self.visual_tokens
        own = [self.text_tokens, self.skipped, len(counts), sum(counts)]
        own += [min(counts, default=torch.iinfo(torch.long).max), max(counts, default=0)]
        table = gather(torch.tensor([own], device=device))
        text, skipped, images, visual = table[:, :4].sum(dim=0).tolist()
        self.skipped_before += skipped
        logs: dict[str, float] = {}
        if self.started is not None:
            seconds = time.monotonic() - self.started
            logs = {"tokens_per_second": (text + visual) / seconds, "images_per_second": images / seconds}
        if images:
            logs["visual_tokens_mean"] = visual / images
            logs["visual_tokens_min"] = float(table[:, 4].min())
            logs["visual_tokens_max"] = float(table[:, 5].max())
        if self.skipped_before:
            logs["skipped_records"] = float(self.skipped_before)
        self._start_over()
        return logs
