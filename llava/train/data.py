"""The training set: records become samples when they are needed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from llava.conversation import Conversation, default_conversation
from llava.data.records import Record, image_path, naming, read_records
from llava.errors import UserError
from llava.image_io import load_image
from llava.mm_utils import process_image
from llava.train.arguments import DataArguments
from llava.train.collator import DataCollatorForSupervisedDataset
from llava.train.preprocess import preprocess, preprocess_multimodal, text_for_clip

logger = logging.getLogger(__name__)

IMAGE_WORDS = 128
"""What an image counts in `LazySupervisedDataset.lengths`, in words."""

Sample = dict[str, Any]
"""``input_ids`` and ``labels`` (L,), and ``record``, its name; with an image also ``text``, for CLIP, and
``image`` (3, height, width) and ``image_size``, width and height of the original.

Or ``skipped`` alone: the sentence that says why the record is left out.
"""


def encode_record(
    record: Record,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    template: Conversation,
    text_source: str = "questions",
) -> Sample:
    """Make a sample of a record's text: all of it but the pixels.

    Args:
        record: One that `check_records` accepts.
        tokenizer: The language model's.
        data_args: Says whether images are seen and how they are marked.
        template: How the conversation is rendered.
        text_source: See `text_for_clip`.

    Returns:
        ``input_ids`` and ``labels`` (L,); with an image also ``text``.

    Raises:
        UserError: If its turns do not fit the template.
    """
    has_image = "image" in record and data_args.is_multimodal
    source = record["conversations"]
    if has_image:
        source = preprocess_multimodal([source], data_args, template)[0]
    encoded = preprocess([source], tokenizer, has_image=has_image, template=template)
    sample: Sample = {"input_ids": encoded["input_ids"][0], "labels": encoded["labels"][0]}
    if has_image:
        sample["text"] = text_for_clip(source, template, text_source)
    return sample


class LazySupervisedDataset(Dataset):
    """Records of a data file as training samples.

    Args:
        data_path: JSON list of records.
        tokenizer: The language model's.
        data_args: Where images lie, how they become pixels, and what to do if they are bad.
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
        self._skipped: set[str] = set()

    def __len__(self) -> int:
        return len(self.list_data_dict)

    @property
    def lengths(self) -> list[int]:
        """Roughly the samples' lengths, in words."""
        return [
            count_words(record) + (IMAGE_WORDS if "image" in record else 0) for record in self.list_data_dict
        ]

    @property
    def modality_lengths(self) -> list[int]:
        """Words of every sample, negative for those without an image; never 0."""
        return [
            max(count_words(record), 1) * (1 if "image" in record else -1) for record in self.list_data_dict
        ]

    def __getitem__(self, index: int) -> Sample:
        """Make a sample.

        Raises:
            UserError: If its turns do not fit the template, or its image is missing or broken and
                ``on_bad_image`` is ``error``.
        """
        record = self.list_data_dict[index]
        with naming(record, index):
            sample = encode_record(record, self.tokenizer, self.data_args, self.template, self.text_source)
            sample["record"] = str(record.get("id", index))
            if "text" not in sample:
                return sample
            path = image_path(record, self.data_args.image_folder)
        try:
            with naming(record, index):
                return {**sample, **self._pixels(path)}
        except UserError as error:
            if self.data_args.on_bad_image != "skip":
                raise
            return self._skip(str(error))

    def _skip(self, sentence: str) -> Sample:
        """Leave a record out, and say so once in this process."""
        if sentence not in self._skipped:
            self._skipped.add(sentence)
            logger.warning("left out: %s", sentence)
        return {"skipped": sentence}

    def _pixels(self, path: Path) -> Sample:
        """Open an image; return its pixels, (3, height, width), and its size."""
        image: Image.Image = load_image(path)
        ratio = "pad" if self.data_args.image_aspect_ratio == "pad" else None
        pixels = process_image(image, self.data_args.image_processor, ratio)
        return {"image": pixels, "image_size": image.size}


def count_words(record: Record) -> int:
    """Count a record's words."""
    return sum(len(turn["value"].split()) for turn in record["conversations"])


def blank_image(data_args: DataArguments) -> Tensor | None:
    """Return pixels (3, height, width) for batches without an image, or ``None`` for a language model."""
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
    collator = DataCollatorForSupervisedDataset(
        tokenizer, blank_image(data_args), counts_skipped=data_args.on_bad_image == "skip"
    )
    return {"train_dataset": dataset, "eval_dataset": None, "data_collator": collator}
