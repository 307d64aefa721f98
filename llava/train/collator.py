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
        blank_image: Pixels (3, H, W) for a batch without images, so that every rank runs the projector
            (ZeRO-3 waits for all of them); ``None`` where there is no vision tower.
    """

    tokenizer: PreTrainedTokenizerBase
    blank_image: Tensor | None = None

    def __call__(self, instances: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join samples.

        Args:
            instances: Of `LazySupervisedDataset`.

        Returns:
            ``input_ids``, ``labels``, ``attention_mask`` (B, L); for a multimodal model also ``images``,
            stacked (I, 3, H, W) if their shapes agree, and ``texts``, one entry per image.
        """
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
        batch["texts"] = [instance["text"] for instance in shown] or [""]
        return batch
