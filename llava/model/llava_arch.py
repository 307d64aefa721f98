"""What makes a language model a LLaVA: a vision tower and a projector, and their tokens in its prompt.

Shapes: B samples, L ids per sample, I images over the batch, N patches, D tower width, H width of the
language model.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llava.constants import (
    DEFAULT_IM_END_TOKEN,
    DEFAULT_IM_START_TOKEN,
    DEFAULT_IMAGE_PATCH_TOKEN,
    DEFAULT_IMAGE_TOKEN,
    IGNORE_INDEX,
    IMAGE_TOKEN_INDEX,
)
from llava.conversation import user_turns
from llava.errors import UserError
from llava.internals import execution_device
from llava.model.anyres import arrange_crops
from llava.model.checkpoint_files import read_tensors
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.token_reduction import NoReduction, VisualTokens, parse_reduction
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.sharding import whole
from llava.model.splice import (
    Question,
    SplicedBatch,
    drop_padding,
    expand_labels,
    expand_placeholders,
    fill_placeholders,
    images_per_sample,
    match_questions,
    pad,
    questions_of_samples,
)

logger = logging.getLogger(__name__)

# Pixels of a batch: (I, 3, H, W), or crops of each image as (I, C, 3, H, W) or a list of (C, 3, H, W) or (3,
# H, W).
Images = Tensor | Sequence[Tensor]


class LlavaMetaModel:
    """Mixin of the inner model: holds the vision tower and the projector next to the transformer's layers."""

    config: Any
    # Of the other base, a transformers model.
    parameters: Callable[[], Iterator[nn.Parameter]]
    _modules: dict[str, nn.Module | None]

    def __init__(self, config: Any) -> None:
        """Build projector and an unloaded tower if the config names a tower."""
        super().__init__(config)  # type: ignore[call-arg]  # the other base is a transformers model
        if getattr(config, "mm_vision_tower", None):
            self.vision_tower = build_vision_tower(config, delay_load=True)
            self._build_projector()

    def _build_projector(self) -> None:
        self.mm_projector = build_vision_projector(self.config)
        if "unpad" in (getattr(self.config, "mm_patch_merge_type", None) or "flat"):
            spread = self.config.hidden_size**-0.5
            self.image_newline = nn.Parameter(torch.randn(self.config.hidden_size) * spread)

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """Return the tower, or None for a plain language model."""
        return getattr(self, "vision_tower", None)

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give the model the tower, projector and reduction that training asked for.

        What the arguments say wins over the checkpoint's config: it is what trains and what is saved (facts
        B7).

        Args:
            model_args: Anything with LLaVA's ``ModelArguments``, and maybe ``vision_tower_beside``, the
                checkpoint next to which the tower's folder may lie.
            fsdp: LLaVA's argument, unused.

        Raises:
            UserError: If a setting is not accepted, or the projector file does not fit.
        """
        del fsdp
        config = self.config
        old_projector = (
            getattr(config, "mm_projector_type", None) or "linear",
            getattr(config, "mm_hidden_size", None),
        )
        config.mm_vision_tower = model_args.vision_tower or config.mm_vision_tower
        config.mm_vision_select_layer = model_args.mm_vision_select_layer
        config.mm_vision_select_feature = model_args.mm_vision_select_feature
        config.mm_vision_token_reduce_func = model_args.mm_vision_token_reduce_func
        config.mm_patch_merge_type = model_args.mm_patch_merge_type
        config.mm_projector_type = getattr(model_args, "mm_projector_type", None) or "linear"
        config.use_mm_proj = True

        placed = next(self.parameters())
        self.vision_tower = build_vision_tower(config, delay_load=True)
        beside = getattr(model_args, "vision_tower_beside", None)
        self.vision_tower.load_model(beside=beside, device=placed.device, dtype=placed.dtype)
        config.mm_hidden_size = self.vision_tower.hidden_size

        if getattr(self, "mm_projector", None) is None or old_projector != (
            config.mm_projector_type,
            config.mm_hidden_size,
        ):
            self._build_projector()
            self.mm_projector.to(device=placed.device, dtype=placed.dtype)
        # A base model may have been loaded with everything frozen.
        self.mm_projector.requires_grad_(True)
        if model_args.pretrain_mm_mlp_adapter is not None:
            path = Path(model_args.pretrain_mm_mlp_adapter)
            load_projector(self.mm_projector, read_tensors(path), path)

    def hold_tower_apart(self) -> None:
        """Take the tower out of the model's tree of modules, for training; it is used as before.

        What is no part of the model has no weights in its optimizer, its checkpoints and its copies on other
        processes, and DeepSpeed does not split it: ZeRO-3 waits for every process to run every module, but a
        tower that remembers questions does not run its text half equally often everywhere.
        """
        self.__dict__["vision_tower"] = self._modules.pop("vision_tower")


def load_projector(projector: nn.Module, stored: dict[str, Tensor], path: Path) -> None:
    """Fill a projector from what a file such as ``mm_projector.bin`` holds.

    Args:
        projector: Changed in place.
        stored: The file's tensors; their names may carry any prefix.
        path: The file, for messages.

    Raises:
        UserError: If the file's tensors do not fit the projector.
    """
    marker = "mm_projector."
    weights = {name.split(marker, 1)[1]: tensor for name, tensor in stored.items() if marker in name}
    try:
        with whole(projector.parameters()):
            projector.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit this model's projector: {' '.join(str(error).split())}"
        ) from None


class LlavaMetaForCausalLM(ABC):
    """Mixin of the causal language model: turns prompts with placeholders and pixels into embeddings."""

    config: Any
    tokenizer: PreTrainedTokenizerBase | None = None
    """Reads the question from ``input_ids`` for callers that pass no ``texts``; set when loaded."""
    _warned_of_cut = False

    @abstractmethod
    def get_model(self) -> Any:
        """Return the inner model, which holds tower and projector."""

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """Return the tower, or None for a plain language model."""
        return self.get_model().get_vision_tower()

    @property
    def input_device(self) -> torch.device:
        """Where ids are embedded, also when accelerate keeps the embeddings elsewhere."""
        embeddings = self.get_model().embed_tokens
        weight: Tensor = embeddings.weight
        return execution_device(embeddings) if weight.is_meta else weight.device

    def encode_images(self, images: Tensor, texts: Sequence[Question] | str | None = None) -> VisualTokens:
        """See, reduce and project a batch of pictures.

        Args:
            images: Pixels, (I, 3, H, W).
            texts: The question of each image, see `CLIPVisionTower.forward`.

        Returns:
            Visual tokens in the language model's width: ``packed`` is (sum(counts), H).
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise UserError("images were given to a model without a vision tower")
        return self.project(tower(images, texts))

    def project(self, tokens: VisualTokens) -> VisualTokens:
        """Map packed tokens (sum(counts), D) to the language model's width, (sum(counts), H)."""
        projector = self.get_model().mm_projector
        placed = next(projector.parameters(), tokens.packed)
        packed = tokens.packed.to(placed.dtype)
        if not placed.is_meta:  # weights that accelerate keeps elsewhere fetch their inputs themselves
            packed = packed.to(placed.device)
        packed = projector(packed)
        return VisualTokens(packed, tokens.counts, tokens.kept)

    def _tokens_per_image(
        self, images: Images, image_sizes: Sequence[tuple[int, int]] | None, texts: list[Question] | None
    ) -> list[Tensor]:
        """Return the projected tokens of every image, one (n_i, H) each with its crops merged."""
        if isinstance(images, Tensor) and images.ndim == 4:
            return list(self.encode_images(images, texts).split())
        crops = [image if image.ndim == 4 else image.unsqueeze(0) for image in images]
        if texts is not None and len(texts) == len(crops):
            texts = [text for image, text in zip(crops, texts, strict=True) for _ in image]
        tokens = self.encode_images(torch.cat(crops), texts).split()
        merged, start = [], 0
        for i, image in enumerate(crops):
            own = tokens[start : start + len(image)]
            start += len(image)
            merged.append(self.merge_crops(own, image_sizes[i] if image_sizes is not None else None))
        return merged

    def merge_crops(self, crops: Sequence[Tensor], image_size: tuple[int, int] | None) -> Tensor:
        """Join the (n, H) tokens of one image's crops as ``mm_patch_merge_type`` says; (sum of n, H)."""
        tower = self.get_vision_tower()
        assert tower is not None
        merge_type = getattr(self.config, "mm_patch_merge_type", None) or "flat"
        # Reduced crops have no grid to be arranged on: their tokens follow one another.
        if merge_type == "flat" or not isinstance(tower.token_reduction, NoReduction):
            return torch.cat(list(crops))
        newline = self.get_model().image_newline if "unpad" in merge_type else None
        return arrange_crops(
            crops, tower.num_patches_per_side, image_size, newline, self.config, tower.config
        )

    def prepare_inputs_labels_for_multimodal(  # noqa: PLR0913, PLR0917 - LLaVA's signature
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        texts: Sequence[Question] | str | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]:
        """Replace ids by embeddings with the visual tokens in them: LLaVA's name, arguments and result.

        Args:
            input_ids: Ids with ``IMAGE_TOKEN_INDEX`` where an image belongs, (B, L).
            position_ids: Returned as they are where nothing is spliced, else made anew.
            attention_mask: Which ids are no padding, (B, L).
            past_key_values: Returned as they are.
            labels: (B, L), returned as None if missing.
            images: Pixels of all images in the order of their placeholders.
            image_sizes: Width and height of the pictures in pixels; read for ``anyres`` only.
            texts: The question per image, or per sample, or one for all; recovered from ``input_ids`` if
                missing.

        Returns:
            ids (None once embedded), position ids, mask, past key values, embeddings (B, T, H), labels (B,
            T).

        Raises:
            UserError: If placeholders and images do not match, or a question is needed and cannot be had.
        """
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        batch = self.splice(
            input_ids,
            attention_mask,
            labels,
            images,
            image_sizes=image_sizes,
            texts=texts,
            side=self._padding_side(),
        )
        mask = batch.attention_mask.to(torch.long if attention_mask is None else attention_mask.dtype)
        spliced_labels = None if labels is None else batch.labels
        return None, batch.position_ids, mask, past_key_values, batch.embeddings, spliced_labels

    def splice(  # noqa: PLR0913 - that of `prepare_inputs_labels_for_multimodal`
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        images: Images | None,
        *,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        texts: Sequence[Question] | str | None = None,
        side: str = "right",
    ) -> SplicedBatch:
        """Embed a padded batch of prompts with their images' tokens in place.

        Arguments are those of `prepare_inputs_labels_for_multimodal`.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L) or None.
            labels: (B, L) or None.
            images: Pixels, or None for text alone.
            image_sizes: As above.
            texts: As above.
            side: Where the padding goes.
        """
        rows = drop_padding(input_ids, attention_mask)
        label_rows = [
            row.new_full(row.shape, IGNORE_INDEX) if labels is None else kept
            for row, kept in zip(
                rows, rows if labels is None else drop_padding(labels, attention_mask), strict=True
            )
        ]
        count = 0 if images is None else len(images)
        shown = images_per_sample(rows, count)
        tokens: list[Tensor] = []
        if images is not None:
            questions = self._question_per_image(texts, rows, shown, count, all_turns=labels is not None)
            tokens = self._tokens_per_image(images, image_sizes, questions)
        # The empty slice ties a sample without a picture to the projector, which every process must run
        # under ZeRO-3.
        own = [[tokens[i] for i in indices] or [image[:0] for image in tokens[:1]] for indices in shown]
        embedded = self.embed_prompts(rows, own)
        expanded_labels = [
            expand_labels(row_labels, row, [len(tokens[i]) for i in indices])[: len(embeddings)]
            for row_labels, row, indices, embeddings in zip(label_rows, rows, shown, embedded, strict=True)
        ]
        return pad(embedded, expanded_labels, side)

    def embed_prompts(self, rows: Sequence[Tensor], images: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Embed prompts with their images' projected tokens in place.

        All ids are looked up at once: under ZeRO-3 processes with batches of different sizes would otherwise
        wait for each other forever.

        Args:
            rows: Ids of every prompt, (L_i,) with one ``IMAGE_TOKEN_INDEX`` per image.
            images: Per prompt one (n, H) per image.

        Returns:
            One (T_i, H) per prompt, cut at ``tokenizer_model_max_length`` if the config sets one.
        """
        expanded = [self._expand(ids, own) for ids, own in zip(rows, images, strict=True)]
        ids = torch.cat(expanded)
        # As one sample (1, T), the shape that what is hooked to the embeddings (NEFTune) expects.
        embeddings = self.get_model().embed_tokens(ids.masked_fill(ids == IMAGE_TOKEN_INDEX, 0)[None])[0]
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
        if not self._warned_of_cut:
            self._warned_of_cut = True
            logger.warning(
                "a prompt of %d tokens is cut at tokenizer_model_max_length, %d (said once)", length, limit
            )

    def _padding_side(self) -> str:
        return getattr(self.config, "tokenizer_padding_side", None) or "right"

    def _question_per_image(
        self,
        texts: Sequence[Question] | str | None,
        rows: Sequence[Tensor],
        shown: Sequence[range],
        images: int,
        all_turns: bool,
    ) -> list[Question] | None:
        """Match the caller's texts with the images, or read questions from the prompts' ids, (L,) each."""
        tower = self.get_vision_tower()
        if tower is None or not tower.token_reduction.needs_question:
            return None
        if texts is not None:
            return match_questions(texts, shown, images)
        if self.tokenizer is None:
            return None
        return questions_of_samples([self.question_in_ids(row, all_turns) for row in rows], shown, images)

    def question_in_ids(self, ids: Tensor, all_turns: bool = False) -> Question:
        """Read from a prompt's ids (L,) what the user asked last, or, as training does, in every turn."""
        assert self.tokenizer is not None
        stretches, start = [], 0
        for end in [*(ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist(), len(ids)]:
            stretches.append(self.tokenizer.decode(ids[start:end].tolist(), skip_special_tokens=False))
            start = end + 1
        turns = user_turns(DEFAULT_IMAGE_TOKEN.join(stretches))
        return turns if all_turns else turns[-1]

    def set_token_reduction(self, setting: str | None) -> None:
        """Change the reduction of the loaded model and its config, as ``mm_vision_token_reduce_func`` would.

        Raises:
            UserError: If the setting is not accepted, or the model has no vision tower.
        """
        tower = self.get_vision_tower()
        if tower is None:
            raise UserError(f"token reduction {setting!r} needs a model with a vision tower")
        reducer = parse_reduction(setting)
        tower.set_token_reduction(reducer)
        self.config.mm_vision_token_reduce_func = str(reducer)

    def initialize_vision_tokenizer(self, model_args: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Add the special tokens that the settings ask for, and say what of the embeddings learns.

        Args:
            model_args: Anything with LLaVA's ``mm_use_im_*``, ``tune_mm_mlp_adapter`` and
                ``pretrain_mm_mlp_adapter``.
            tokenizer: Extended in place.
        """
        model: Any = self  # the other base is a transformers model
        add_image_tokens(model, tokenizer, model_args)
        if not model_args.mm_use_im_start_end:
            return
        if model_args.tune_mm_mlp_adapter:
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(False)
        if model_args.pretrain_mm_mlp_adapter:
            weight, path = model.get_input_embeddings().weight, Path(model_args.pretrain_mm_mlp_adapter)
            with whole([weight]):
                load_new_rows(weight.data, read_tensors(path), path, tokenizer)


def add_image_tokens(model: Any, tokenizer: PreTrainedTokenizerBase, settings: Any) -> None:
    """Add the special tokens that the settings ask for; their new rows begin as the mean of the old ones.

    Args:
        model: A language model; its embeddings and its head grow if they have no room.
        tokenizer: Extended in place.
        settings: Anything with LLaVA's ``mm_use_im_patch_token`` (absent means True, as in LLaVA) and
            ``mm_use_im_start_end``.
    """
    tokens = [DEFAULT_IMAGE_PATCH_TOKEN] if getattr(settings, "mm_use_im_patch_token", True) else []
    if getattr(settings, "mm_use_im_start_end", False):
        tokens += [DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN]
    tokenizer.add_tokens(tokens, special_tokens=True)
    before = model.config.vocab_size
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            with whole([layer.weight]):
                layer.weight.data[before:] = layer.weight.data[:before].mean(dim=0, keepdim=True)


def load_new_rows(
    embeddings: Tensor,
    stored_tensors: dict[str, Tensor],
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    all_rows: bool = False,
) -> None:
    """Copy the start and end tokens' rows from a projector file that brings all embeddings or just these.

    Args:
        embeddings: The model's input embeddings, (V, H), changed in place.
        stored_tensors: What the file holds.
        path: The file, for messages.
        tokenizer: Knows which rows are theirs.
        all_rows: Whether the others are copied too if the file has them: stage 1 changes every row that its
            captions use, and its result answers with those. As in LLaVA, stage 2 does not begin with them.

    Raises:
        UserError: If the file has no embeddings or of another size.
    """
    rows = [
        tokenizer.convert_tokens_to_ids(token) for token in (DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN)
    ]
    stored = stored_tensors.get("model.embed_tokens.weight")
    new_shape = (len(rows), embeddings.shape[1])
    if stored is None or stored.shape not in (embeddings.shape, new_shape):
        found = "none" if stored is None else tuple(stored.shape)
        raise UserError(
            f"{path} should hold model.embed_tokens.weight of shape {tuple(embeddings.shape)} or {new_shape} "
            f"for the start and end tokens; found {found}"
        )
    if stored.shape == new_shape:
        embeddings[rows] = stored.to(embeddings)
    elif all_rows:
        embeddings.copy_(stored)
    else:
        embeddings[rows] = stored[rows].to(embeddings)
