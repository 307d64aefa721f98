"""The training set: records become samples when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava.conversation import Conversation, default_conversation
from llava.errors import UserError
from llava.image_io import load_image
from llava.mm_utils import process_image
from llava.train.arguments import DataArguments
from llava.train.collator import DataCollatorForSupervisedDataset
from llava.train.preprocess import preprocess, preprocess_multimodal, text_for_clip
from llava.train.records import Record, image_path, name_record, read_records

IMAGE_WORDS = 128
"""What an image counts in `LazySupervisedDataset.lengths`, in words."""

Sample = dict[str, Any]
"""``input_ids`` and ``labels`` (L,); with an image also ``image`` (3, H, W) and ``text``, what CLIP reads."""


class LazySupervisedDataset(Dataset):
    """Records of a data file as training samples.

    Args:
        data_path: JSON list of records.
        tokenizer: The language model's.
        data_args: Where images lie and how they become pixels.
        template: How conversations are rendered.
        text_source: See `text_for_clip`.
        records: What `read_records` gave, to read the file only once.
    """

    def __init__(
        self,
        data_path: str,
        tokenizer: PreTrainedTokenizerBase,
        data_args: DataArguments,
        *,
        template: Conversation = default_conversation,
        text_source: str = "questions",
        records: list[Record] | None = None,
    ) -> None:
        super().__init__()
        self.list_data_dict = read_records(data_path) if records is None else records
        self.tokenizer = tokenizer
        self.data_args = data_args
        self.template = template
        self.text_source = text_source

    def __len__(self) -> int:
        return len(self.list_data_dict)

    @property
    def lengths(self) -> list[int]:
        """Roughly the samples' lengths, in words."""
        return [_words(record) + (IMAGE_WORDS if "image" in record else 0) for record in self.list_data_dict]

    @property
    def modality_lengths(self) -> list[int]:
        """Words of every sample, negative for those without an image; never 0."""
        return [max(_words(record), 1) * (1 if "image" in record else -1) for record in self.list_data_dict]

    def __getitem__(self, index: int) -> Sample:
        """Make a sample.

        Raises:
            UserError: If its image is missing or broken, or its turns do not fit the template.
        """
        record = self.list_data_dict[index]
        try:
            return self._sample(record)
        except UserError as error:
            raise type(error)(f"{name_record(record, index)}: {error}") from error

    def _sample(self, record: Record) -> Sample:
        """Tokenize a record and open its image."""
        has_image = "image" in record and self.data_args.is_multimodal
        source = record["conversations"]
        if has_image:
            source = preprocess_multimodal([source], self.data_args, self.template)[0]
        encoded = preprocess([source], self.tokenizer, has_image=has_image, template=self.template)
        sample: Sample = {"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}
        if has_image:
            sample["image"] = self._pixels(image_path(record, self.data_args.image_folder))
            sample["text"] = text_for_clip(source, self.template, self.text_source)
        return sample

    def _pixels(self, path: Path) -> Tensor:
        """Open an image and turn it into pixels, (3, H, W)."""
        image: Image.Image = load_image(path)
        ratio = self.data_args.image_aspect_ratio
        return process_image(image, self.data_args.image_processor, "pad" if ratio == "pad" else None)


def _words(record: Record) -> int:
    """Count a record's words."""
    return sum(len(turn["value"].split()) for turn in record["conversations"])


def blank_image(data_args: DataArguments) -> Tensor | None:
    """Return pixels (3, H, W) for batches without an image, or ``None`` for a language model."""
    if not data_args.is_multimodal:
        return None
    crop = data_args.image_processor.crop_size
    return torch.zeros(3, crop["height"], crop["width"])


def make_supervised_data_module(
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    *,
    template: Conversation = default_conversation,
    text_source: str = "questions",
    records: list[Record] | None = None,
) -> dict[str, Any]:
    """Return what `LLaVATrainer` takes: ``train_dataset``, ``eval_dataset`` (none) and ``data_collator``.

    Args:
        tokenizer: The language model's.
        data_args: See `LazySupervisedDataset`.
        template: See `LazySupervisedDataset`.
        text_source: See `text_for_clip`.
        records: See `LazySupervisedDataset`.
    """
    if data_args.data_path is None:
        raise UserError("--data_path is needed: a JSON list of records")
    dataset = LazySupervisedDataset(
        data_args.data_path,
        tokenizer,
        data_args,
        template=template,
        text_source=text_source,
        records=records,
    )
    collator = DataCollatorForSupervisedDataset(tokenizer, blank_image(data_args))
    return {"train_dataset": dataset, "eval_dataset": None, "data_collator": collator}
