"""How long the texts of training records are: for the language model, and for CLIP's text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import CLIPTextConfig, PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle
from llava.data.records import Record
from llava.model.checkpoint_configs import read_clip_configs
from llava.model.checkpoint_files import own_file, resolve_folder
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.tokenizer import load_clip_tokenizer, load_tokenizer
from llava.train.arguments import DataArguments, ModelArguments
from llava.train.data import count_words, encode_record
from llava.train.model_setup import read_base
from llava.train.preprocess import render, text_for_clip


@dataclass(frozen=True, slots=True)
class Measure:
    """How long the texts of one record are.

    Attributes:
        length: In the `Ruler.unit`.
        learns: Whether a part of an answer lies within the length at which samples are cut.
        questions: Texts of it that CLIP reads, as far as they were measured.
        long_questions: Those of them that CLIP cuts.
    """

    length: int
    learns: bool
    questions: int = 0
    long_questions: int = 0


@dataclass(frozen=True, slots=True)
class Clip:
    """What of a CLIP decides about lengths.

    Attributes:
        patches: Visual tokens of an image that is not reduced.
        tokenizer: Of its text encoder, if the folder has one.
        limit: Tokens that the text encoder reads.
    """

    patches: int
    tokenizer: PreTrainedTokenizerBase | None
    limit: int


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures records whose turns are right.

    Attributes:
        template: How their conversations are rendered.
        limit: Length at which samples are cut.
        data_args: How images are marked.
        tokenizer: The language model's; without it words are counted.
        clip: Without it neither visual tokens nor questions are counted.
    """

    template: Conversation
    limit: int
    data_args: DataArguments
    tokenizer: PreTrainedTokenizerBase | None = None
    clip: Clip | None = None

    @property
    def unit(self) -> str:
        """What lengths count."""
        return "words" if self.tokenizer is None else "tokens"

    @property
    def counted(self) -> str:
        """What of a sample lengths count, in a few words."""
        if self.tokenizer is None:
            return "of the turns; --model_name_or_path counts tokens"
        if self.clip is None:
            return "of text only; --vision_tower counts visual tokens too"
        return f"of text, and {self.clip.patches} per image, as without token reduction"

    @property
    def questions(self) -> str:
        """What CLIP reads of a record, see `text_for_clip`."""
        return "captions" if self.template.sep_style is SeparatorStyle.PLAIN else "questions"

    @property
    def clip_limit(self) -> int | str:
        """Tokens that CLIP reads of a question, or why questions are not measured."""
        if self.clip is None:
            return "not checked (give --vision_tower)"
        if self.clip.tokenizer is None:
            return "not checked (the CLIP folder has no tokenizer)"
        return self.clip.limit

    def measure(self, record: Record) -> Measure:
        """Measure the texts of a record."""
        length, learns = self._words(record) if self.tokenizer is None else self._tokens(record)
        if "image" not in record or self.clip is None or self.clip.tokenizer is None:
            return Measure(length, learns)
        texts = text_for_clip(record["conversations"], self.template, "questions")
        sizes = [len(self.clip.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        return Measure(length, learns, len(sizes), sum(size > self.clip.limit for size in sizes))

    def _words(self, record: Record) -> tuple[int, bool]:
        """Count words; where tokens will be cut is unknown, so any answer counts as supervised."""
        segments = render(record["conversations"], self.template)
        return count_words(record), any(segment.supervised for segment in segments)

    def _tokens(self, record: Record) -> tuple[int, bool]:
        """Count tokens, and look for a supervised one before the cut."""
        assert self.tokenizer is not None
        sample = encode_record(record, self.tokenizer, self.data_args, self.template)
        visual = self.clip.patches if self.clip else 0
        ends = torch.where(sample["input_ids"] == IMAGE_TOKEN_INDEX, visual, 1).cumsum(0)
        supervised = (sample["labels"] != IGNORE_INDEX) & (ends <= self.limit)
        return int(ends[-1]), bool(supervised.any())


def make_ruler(
    template: Conversation, limit: int, data_args: DataArguments, base: str | None, vision_tower: str | None
) -> Ruler:
    """Make a ruler with what is known of the models.

    Args:
        template: See `Ruler`.
        limit: See `Ruler`.
        data_args: See `Ruler`; gets the base's settings.
        base: Folder or hub id of a language model or LLaVA checkpoint.
        vision_tower: Folder or hub id of CLIP; by default the base's, if it has one.

    Raises:
        UserError: If one of them is no model that can be trained.
        MissingFileError: If one is not found.
    """
    if base is None:
        clip = None if vision_tower is None else read_clip(resolve_folder(vision_tower))
        return Ruler(template, limit, data_args, clip=clip)
    model_args = ModelArguments(model_name_or_path=base, vision_tower=vision_tower)
    folder = read_base(model_args, data_args).folder
    tower = model_args.vision_tower
    return Ruler(
        template,
        limit,
        data_args,
        tokenizer=load_tokenizer(folder, model_max_length=limit),
        clip=None if tower is None else read_clip(resolve_folder(tower)),
    )


def read_clip(folder: Path) -> Clip:
    """Read what decides about lengths from CLIP's folder; no weights are loaded."""
    tower = CLIPVisionTower(str(folder), SimpleNamespace(mm_vision_select_layer=-2), delay_load=True)
    # Without its files transformers would make a tokenizer that knows no words.
    has_tokenizer = own_file(folder, "tokenizer.json") or (
        own_file(folder, "vocab.json") and own_file(folder, "merges.txt")
    )
    text = read_clip_configs(folder)[1]
    return Clip(
        patches=tower.num_patches,
        tokenizer=load_clip_tokenizer(folder, text) if has_tokenizer and text else None,
        limit=text.max_position_embeddings if text else CLIPTextConfig().max_position_embeddings,
    )
