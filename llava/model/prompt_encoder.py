"""From images, texts and ids to the embeddings of a prompt: encode, reduce, project, splice, each done here.

``generate``, training and the `Assistant` come through here. Nothing here needs the layers of the language
model, so that an engine in another process can have those alone.

Shapes: B prompts, L_i ids of prompt i, T_i its length with visual tokens, C crops of an image (one, unless it
was cut for ``anyres``), N patches per crop, D width of the vision tower, H width of the language model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import user_turns
from llava.errors import UserError
from llava.mm_utils import Size, process_images
from llava.model.anyres import arrange_crops
from llava.model.input_checks import check_ids, check_images, check_texts
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.image_inputs import Surroundings
from llava.model.multimodal_encoder.reducers.base import Signal
from llava.model.multimodal_encoder.reducers.registry import reads_question, signals_of
from llava.model.multimodal_encoder.token_reduction import NoReduction, Reducer, VisualTokens
from llava.model.placement import hand_over
from llava.model.splice import (
    ImageText,
    SplicedBatch,
    drop_padding,
    expand_labels,
    expand_placeholders,
    fill_placeholders,
    find_padding,
    images_per_sample,
    match_texts,
    pad,
    texts_of_samples,
)

if TYPE_CHECKING:
    from llava.model.llava_arch import LlavaMetaForCausalLM

logger = logging.getLogger(__name__)

Images = Tensor | Sequence[Tensor]
"""Pixels of I images: (I, 3, height, width), or crops of each image as (I, C, 3, height, width) or a list of
(C, 3, height, width) or (3, height, width)."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """An image after the vision encoder, before any question.

    Attributes:
        pixels: (C, 3, height, width).
        patches: (C, N, D).
        size: Of the original.
        signals: What else reducers wanted of the encoder, (C, ...) each.
    """

    pixels: Tensor
    patches: Tensor
    size: Size
    signals: Mapping[Signal, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """What it takes, wherever it is."""
        return sum(one.nbytes for one in (self.pixels, self.patches, *self.signals.values()))


@dataclass(frozen=True, slots=True)
class ReducedImage:
    """What a reducer left of an image.

    Attributes:
        crops: Visual tokens of its crops, in the vision tower's width.
        size: Of the original; None where nobody said so.
        reducer: What reduced it.
        is_cut: Whether it came as a list of crops, as ``anyres`` makes it, even if of one.
    """

    crops: VisualTokens
    size: Size | None
    reducer: Reducer
    is_cut: bool = False


class PromptEncoder:
    """Embeds prompts with the visual tokens of their images in place.

    Args:
        model: Holds the vision tower, the projector, the embedding table, the tokenizer and the config.
    """

    def __init__(self, model: LlavaMetaForCausalLM) -> None:
        self._model = model
        self._has_warned_of_cut = False
        self._has_warned_of_unseen = False
        self.observers: list[Callable[[list[ReducedImage]], None]] = []
        """Called with what is left of a batch of images, whenever `splice` has reduced one."""

    @property
    def config(self) -> Any:
        """The LLaVA config."""
        return self._model.config

    @property
    def device(self) -> torch.device:
        """Where ids are embedded."""
        return self._model.input_device

    @property
    def tower(self) -> CLIPVisionTower:
        """The vision tower.

        Raises:
            UserError: If the model has none, or it is not loaded, or not with the checkpoint's own weights.
        """
        tower = self._model.get_vision_tower()
        if tower is None:
            raise UserError("images were given to a model without a vision tower")
        tower.require_loaded()
        if getattr(self.config, "unfreeze_mm_vision_tower", False) and not tower.has_own_weights:
            raise UserError(
                "the checkpoint trained its vision tower, and that of CLIP is loaded: load it with "
                "llava.load_pretrained_model"
            )
        return tower

    @property
    def reducer(self) -> Reducer:
        """The reducer that the model's config names."""
        tower = self._model.get_vision_tower()
        return NoReduction() if tower is None else tower.token_reduction

    def preprocess(self, image: Image.Image) -> Tensor:
        """Turn an image in RGB into the pixels of its crops, (C, 3, height, width).

        Raises:
            UserError: If the model has no vision tower, or the image is of no use to it.
        """
        (pixels,) = process_images([image], self.tower.image_processor, self.config)
        return pixels if pixels.ndim == 4 else pixels.unsqueeze(0)

    @torch.inference_mode()
    def encode(
        self, pixels: Sequence[Tensor], sizes: Sequence[Size], wanted: Collection[Signal] = ()
    ) -> list[EncodedImage]:
        """Run the vision encoder over images, once for all questions about them.

        Args:
            pixels: From `preprocess`, (C, 3, height, width) each.
            sizes: Of the originals.
            wanted: What else the reducers of these questions read.
        """
        if not pixels:
            return []
        patches, signals = self.tower.look(torch.cat(list(pixels)), wanted)
        counts = [len(crops) for crops in pixels]

        def own(features: Tensor) -> list[Tensor]:
            """Return (C, ...) of each image, in memory of its own: one that is kept keeps not the batch."""
            parts = features.split(counts)
            return [part.clone() for part in parts] if len(parts) > 1 else list(parts)

        parts = {signal: own(one) for signal, one in signals.items()}
        return [
            EncodedImage(seen, features, size, {signal: one[i] for signal, one in parts.items()})
            for i, (seen, features, size) in enumerate(zip(pixels, own(patches), sizes, strict=True))
        ]

    @torch.inference_mode()
    def reduce(
        self, images: Sequence[EncodedImage], texts: Sequence[ImageText], reducers: Sequence[Reducer]
    ) -> list[ReducedImage]:
        """Choose the visual tokens of images; those with the same reducer are reduced together.

        Args:
            images: From `encode_images`.
            texts: What CLIP's text encoder reads for each.
            reducers: For each.
        """
        reduced: dict[int, ReducedImage] = {}
        for reducer in dict.fromkeys(reducers):
            own = [i for i, one in enumerate(reducers) if one == reducer]
            counts = [len(images[i].patches) for i in own]
            around = [self._surroundings(images[i].size) for i in own]
            tokens = self.tower.reduce(
                torch.cat([images[i].patches for i in own]),
                torch.cat([images[i].pixels for i in own]),
                _per_crop([texts[i] for i in own], counts),
                reducer,
                signals={
                    signal: torch.cat([images[i].signals[signal] for i in own])
                    for signal in signals_of([reducer])
                },
                around=_per_crop(around, counts),
            )
            for i, crops in zip(own, tokens.split_images(counts), strict=True):
                reduced[i] = ReducedImage(crops, images[i].size, reducer, is_cut=len(crops.counts) > 1)
        return [reduced[i] for i in range(len(images))]

    def _surroundings(self, size: Size | None) -> Surroundings:
        """Return what a reducer may know of an image that the vision tower does not see."""
        is_padded = getattr(self.config, "image_aspect_ratio", None) == "pad"
        return Surroundings(self._model.project_packed, self._embed_words, size, is_padded)

    def _embed_words(self, words: Sequence[str]) -> Tensor:
        """Embed the tokens of words, each tokenized by itself, (m, H).

        Raises:
            UserError: If the model has no tokenizer.
        """
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            raise UserError(
                "this token reduction reads words, and the model has no tokenizer: set model.tokenizer"
            )
        ids = [number for word in words for number in tokenizer(word, add_special_tokens=False)["input_ids"]]
        # A question may have no words: no ids are whole numbers too.
        return self._model.get_model().embed_tokens(
            hand_over(torch.tensor(ids, dtype=torch.long), self.device)
        )

    def project(self, images: Sequence[ReducedImage]) -> list[Tensor]:
        """Map visual tokens to the language model's width and join those of each image's crops.

        The projector runs once, whatever the images' number.

        Returns:
            One (n, H) per image.
        """
        return [
            self._join_crops(piece.split(image.crops.counts), image)
            for piece, image in zip(self.project_apart(images), images, strict=True)
        ]

    def project_apart(self, images: Sequence[ReducedImage]) -> list[Tensor]:
        """Map visual tokens to the language model's width, (sum of n, H) per image, its crops not joined."""
        if not images:
            return []
        # What a reducer has projected already has no gradients.
        known = [None if torch.is_grad_enabled() else image.crops.projected for image in images]
        fresh = [image.crops.packed for image, own in zip(images, known, strict=True) if own is None]
        made = self._model.project_packed(torch.cat(fresh)).split(list(map(len, fresh))) if fresh else ()
        projected = iter(made)
        return [next(projected) if own is None else own for own in known]

    def _join_crops(self, crops: Sequence[Tensor], image: ReducedImage) -> Tensor:
        """Join the (n, H) tokens of one image's crops as ``mm_patch_merge_type`` says; (sum of n, H)."""
        merge_type = getattr(self.config, "mm_patch_merge_type", None) or "flat"
        newline = self._model.get_model().image_newline if "unpad" in merge_type else None
        # Reduced crops have no grid to be arranged on: their tokens follow one another.
        if merge_type == "flat" or not image.is_cut or not isinstance(image.reducer, NoReduction):
            # In training an empty slice ties the newline to the loss: what learns is used in every step.
            if newline is not None and torch.is_grad_enabled():
                crops = [*crops, newline[None, :][:0].to(crops[0])]
            return torch.cat(list(crops))
        tower = self.tower
        return arrange_crops(
            crops, tower.num_patches_per_side, image.size, newline, self.config, tower.config
        )

    def embed(self, rows: Sequence[Tensor], images: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Embed prompts with their images' projected tokens in place.

        All ids are looked up at once: under ZeRO-3 processes with batches of different sizes would otherwise
        wait for each other forever.

        Args:
            rows: Ids of every prompt, (L_i,) with one ``IMAGE_TOKEN_INDEX`` per image.
            images: Per prompt one (n, H) per image.

        Returns:
            One (T_i, H) per prompt, cut at ``tokenizer_model_max_length`` if the config sets one.
        """
        # Expanded on the host, since what a device is asked about its ids has to be waited for.
        expanded = [self._expand(ids.cpu(), own) for ids, own in zip(rows, images, strict=True)]
        ids = hand_over(torch.cat(expanded), self.device)
        table = self._model.get_model().embed_tokens
        # As one sample (1, T), the shape that what is hooked to the embeddings (NEFTune) expects.
        embeddings = table(ids.masked_fill(ids == IMAGE_TOKEN_INDEX, 0)[None])[0]
        pieces = embeddings.split([len(row) for row in expanded])
        return [
            fill_placeholders(row, piece, torch.cat([image.to(piece.device) for image in own]))
            if own
            else piece
            for row, piece, own in zip(expanded, pieces, images, strict=True)
        ]

    def _expand(self, ids: Tensor, images: Sequence[Tensor]) -> Tensor:
        """Repeat the placeholders of a prompt (L,) per token of their images, and cut it: (T,)."""
        is_shown = bool((ids == IMAGE_TOKEN_INDEX).any())
        ids = expand_placeholders(ids, [len(image) for image in images] if is_shown else [])
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        if limit is not None and len(ids) > limit:
            self._warn_of_cut(len(ids), limit)
            ids = ids[:limit]
        return ids

    def _warn_of_cut(self, length: int, limit: int) -> None:
        if not self._has_warned_of_cut:
            self._has_warned_of_cut = True
            logger.warning(
                "a prompt of %d tokens is cut at tokenizer_model_max_length, %d (logged once)", length, limit
            )

    def splice(  # noqa: PLR0913 - that of LLaVA's `prepare_inputs_labels_for_multimodal`
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        images: Images | None,
        *,
        image_sizes: Sequence[Size] | None = None,
        texts: Sequence[ImageText] | str | None = None,
        side: str = "right",
    ) -> SplicedBatch:
        """Embed a padded batch of prompts with their images' tokens in place.

        Args:
            input_ids: Ids with ``IMAGE_TOKEN_INDEX`` where an image belongs, (B, L).
            attention_mask: Which ids are not padding, (B, L); see `mask_of` if missing.
            labels: (B, L), or None.
            images: Pixels of all images in the order of their placeholders; none of them, or None, for text
                alone.
            image_sizes: Width and height of the images in pixels, for ``anyres`` and for reducers that leave
                padding out.
            texts: What CLIP's text encoder reads per image, or per sample, or for all; read from
                ``input_ids`` if missing.
            side: Where the padding goes.

        Raises:
            UserError: If placeholders and images do not match, or a text is needed and cannot be had.
        """
        check_ids(input_ids, attention_mask, labels)
        if images is not None:
            check_images(images)
        if attention_mask is None:
            attention_mask = self.mask_of(input_ids)
        rows = drop_padding(input_ids, attention_mask)
        label_rows = [
            row.new_full(row.shape, IGNORE_INDEX) if labels is None else kept
            for row, kept in zip(
                rows, rows if labels is None else drop_padding(labels, attention_mask), strict=True
            )
        ]
        count = 0 if images is None else len(images)
        shown = images_per_sample(rows, count)
        if labels is None:
            self._warn_of_unseen(count, shown)
        tokens: list[Tensor] = []
        if images is not None and count:
            image_texts = self._text_per_image(texts, rows, shown, count, all_turns=labels is not None)
            tokens = self.project(self.reduce_pixels(images, image_sizes, image_texts))
        # The empty slice ties a sample without an image to the projector, which every process must run
        # under ZeRO-3.
        own = [[tokens[i] for i in indices] or [image[:0] for image in tokens[:1]] for indices in shown]
        embedded = self.embed(rows, own)
        expanded_labels = [
            expand_labels(row_labels, row, [len(tokens[i]) for i in indices])[: len(embeddings)]
            for row_labels, row, indices, embeddings in zip(label_rows, rows, shown, embedded, strict=True)
        ]
        return pad(embedded, expanded_labels, side)

    def mask_of(self, input_ids: Tensor) -> Tensor | None:
        """Tell which ids of a batch are not padding, where the caller gave no mask, as transformers does.

        Args:
            input_ids: (B, L).

        Returns:
            True on what is not padding, (B, L); None if nothing is, or what pads also ends a text.
        """
        known = self._model.tokenizer
        if known is None:
            known = getattr(self._model, "generation_config", self.config)
        pad_id, end = known.pad_token_id, known.eos_token_id
        ends = end if isinstance(end, list) else [end]
        return None if pad_id is None or pad_id in ends else find_padding(input_ids, pad_id)

    def _warn_of_unseen(self, images: int, shown: Sequence[range]) -> None:
        """Say once that images were given which no prompt shows.

        Beside prompts with images, one without may bring an image that stands for none.
        """
        seen = sum(map(len, shown))
        unseen = images - seen - (sum(not own for own in shown) if seen else 0)
        if unseen > 0 and not self._has_warned_of_unseen:
            self._has_warned_of_unseen = True
            logger.warning(
                "%d of %d images have no <image> placeholder in the prompts, so the model does not see them "
                "(logged once)",
                *(unseen, images),
            )

    def reduce_pixels(
        self, images: Images, image_sizes: Sequence[Size] | None, texts: Sequence[ImageText] | str | None
    ) -> list[ReducedImage]:
        """Encode and reduce pixels by the model's own reducer; see `splice`."""
        tower = self.tower
        if isinstance(texts, str):
            texts = [texts]  # for all images
        is_cut = not (isinstance(images, Tensor) and images.ndim == 4)
        if isinstance(images, Tensor) and not is_cut:
            pixels, counts = images, [1] * len(images)
        else:
            crops = [image if image.ndim == 4 else image.unsqueeze(0) for image in images]
            pixels, counts = torch.cat(crops), [len(image) for image in crops]
        if image_sizes is not None and len(image_sizes) != len(counts):
            raise UserError(f"{len(image_sizes)} image_sizes for {len(counts)} images; give one per image")
        if texts is not None and len(texts) == len(counts):
            texts = _per_crop(texts, counts)
        sizes: Sequence[Size | None] = image_sizes or [None] * len(counts)
        patches, signals = tower.look(pixels, signals_of([tower.token_reduction]))
        around = _per_crop([self._surroundings(size) for size in sizes], counts)
        tokens = tower.reduce(patches, pixels, texts, signals=signals, around=around)
        reduced = [
            ReducedImage(crops, size, tower.token_reduction, is_cut)
            for crops, size in zip(tokens.split_images(counts), sizes, strict=True)
        ]
        for observe in self.observers:
            observe(reduced)
        return reduced

    def _text_per_image(
        self,
        texts: Sequence[ImageText] | str | None,
        rows: Sequence[Tensor],
        shown: Sequence[range],
        images: int,
        all_turns: bool,
    ) -> list[ImageText] | None:
        """Match the caller's texts with the images, or read them from the prompts' ids, (L_i,) each."""
        if not reads_question(self.tower.token_reduction):
            return None
        if texts is not None:
            check_texts(texts)
            return match_texts(texts, shown, images)
        if self._model.tokenizer is None:
            return None
        # Of a prompt without images nobody reads the question, which it need not have.
        questions = [
            self.question_in_ids(row, all_turns) if own else "" for row, own in zip(rows, shown, strict=True)
        ]
        return texts_of_samples(questions, shown, images)

    def question_in_ids(self, ids: Tensor, all_turns: bool = False) -> ImageText:
        """Read from a prompt's ids (L,) what the user asked last, or, as training does, in every turn."""
        tokenizer = self._model.tokenizer
        assert tokenizer is not None
        stretches, start = [], 0
        for end in [*(ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist(), len(ids)]:
            stretches.append(tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False))
            start = end + 1
        turns = user_turns(DEFAULT_IMAGE_TOKEN.join(stretches))
        return turns if all_turns else turns[-1]


Item = TypeVar("Item")


def _per_crop(items: Sequence[Item], counts: Sequence[int]) -> list[Item]:
    """Repeat what belongs to an image for each of its crops."""
    return [item for item, count in zip(items, counts, strict=True) for _ in range(count)]
