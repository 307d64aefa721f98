"""Samples to a batch: padded ids and labels, the images that are really shown, and their questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX


@dataclass
class DataCollatorForSupervisedDataset:
    """Joins samples to a batch.

    Attributes:
        tokenizer: Gives the pad id and the length beyond which a sample is cut.
        blank_image: Pixels (3, height, width) for a batch without images, so that every rank runs the
            projector (ZeRO-3 waits for all of them); ``None`` where there is no vision tower.
        counts_skipped: Whether batches say how many samples were left out of them.
    """

    tokenizer: PreTrainedTokenizerBase
    blank_image: Tensor | None = None
    counts_skipped: bool = False

    def __call__(self, instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join samples.

        Args:
            instances: Of `LazySupervisedDataset`. Skipped ones are left out; if no other is there, the batch
                is one row in which nothing is supervised.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask`` (B, L); for a multimodal model also ``images``,
            stacked (I, 3, height, width) if their shapes agree, and one entry per image of ``texts`` and
            ``image_sizes``, width and height of the originals. If ``counts_skipped``, also ``skipped``, a
            number. Samples that have a name are named in ``records``.
        """
        kept = [instance for instance in instances if "skipped" not in instance]
        batch = self._join(kept or [self._nothing()])
        if names := [instance["record"] for instance in kept if "record" in instance]:
            batch["records"] = names
        if self.counts_skipped:
            batch["skipped"] = len(instances) - len(kept)
        return batch

    def _nothing(self) -> dict[str, Any]:
        """Return a sample that teaches nothing: a rank without a sample still takes part in its step.

        It has two tokens, because the model takes a row of one for a step of decoding, which sees no image.
        """
        return {
            "input_ids": torch.full((2,), self.tokenizer.pad_token_id),
            "labels": torch.full((2,), IGNORE_INDEX),
        }

    def _join(self, instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join whole samples."""
        limit = self.tokenizer.model_max_length
        ids = [instance["input_ids"][:limit] for instance in instances]
        labels = [instance["labels"][:limit] for instance in instances]
        batch: dict[str, Any] = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            # Made from lengths: a text may hold the pad id, which is Llama's unknown token, as a token.
            "attention_mask": pad_sequence(
                [torch.ones_like(row, dtype=torch.bool) for row in ids], True, False
            ),
        }
        if self.blank_image is None:
            return batch
        # An image whose placeholder was cut off, or that no turn shows, has nowhere to go.
        shown = [
            instance
            for instance, row in zip(instances, ids, strict=True)
            if "image" in instance and (row == IMAGE_TOKEN_INDEX).any()
        ]
        images = [instance["image"] for instance in shown] or [self.blank_image]
        batch["images"] = torch.stack(images) if len({image.shape for image in images}) == 1 else images
        blank = (self.blank_image.shape[2], self.blank_image.shape[1])
        batch["image_sizes"] = [instance["image_size"] for instance in shown] or [blank]
        batch["texts"] = [instance["text"] for instance in shown] or [""]
        return batch
