"""What makes a language model a LLaVA: a vision tower and a projector, and their tokens in its prompt.

Shapes: B samples, L ids per sample, I images over the batch, N patches, D tower width, H width of the
language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from llava.errors import UserError
from llava.internals import execution_device
from llava.model.anyres import cut_padding
from llava.model.checkpoint_files import read_tensors
from llava.model.input_checks import check_ids
from llava.model.multimodal_encoder.builder import build_vision_tower
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.multimodal_projector.builder import build_vision_projector
from llava.model.prompt_encoder import Images, PromptEncoder
from llava.model.sharding import gathered_parameters
from llava.model.splice import ImageText
from llava.model.vision_settings import VisionSettings
from llava.model.weights import add_image_tokens, load_new_rows, load_projector

Prepared = tuple[Tensor | None, Tensor | None, Tensor | None, Any, Tensor | None, Tensor | None]
"""Ids, position ids, mask, past key values, embeddings and labels."""


def unpad_image(tensor: Tensor, original_size: tuple[int, int]) -> Tensor:
    """Cut a padded grid of tokens (H, rows, columns) to the original's width and height: LLaVA's name."""
    return cut_padding(tensor.permute(1, 2, 0), original_size).permute(2, 0, 1)


class LlavaMetaModel:
    """Mixin of the inner model: holds the vision tower and the projector next to the transformer's layers."""

    config: Any
    _modules: dict[str, nn.Module | None]  # of the other base, a module

    def __init__(self, config: Any) -> None:
        """Build projector and an unloaded tower if the config names a tower."""
        super().__init__(config)  # type: ignore[call-arg]  # the other base is a transformers model
        if getattr(config, "mm_vision_tower", None):
            self.vision_tower = build_vision_tower(config, delay_load=True)
            self.mm_projector = build_vision_projector(config)
            if self._ends_rows():
                self._build_newline()

    def _ends_rows(self) -> bool:
        """Tell whether the config says that a token of its own ends every row of an image."""
        return "unpad" in (getattr(self.config, "mm_patch_merge_type", None) or "flat")

    def _build_newline(self) -> None:
        spread = self.config.hidden_size**-0.5
        self.image_newline = nn.Parameter(torch.randn(self.config.hidden_size) * spread)

    def get_vision_tower(self) -> CLIPVisionTower | None:
        """Return the tower, or None for a plain language model."""
        return getattr(self, "vision_tower", None)

    def initialize_vision_modules(self, model_args: Any, fsdp: Any = None) -> None:
        """Give the model the tower, projector and reduction that training asked for.

        What the arguments say wins over the checkpoint's config: it is what trains and what is saved, where
        the published code trained with the one and saved the other.

        Args:
            model_args: Anything with LLaVA's ``ModelArguments``.
            fsdp: LLaVA's argument, unused.

        Raises:
            UserError: If a setting is not accepted, or the projector file does not fit.
        """
        del fsdp
        projector = model_args.pretrain_mm_mlp_adapter
        settings = VisionSettings.of(model_args, self.config)
        self.add_vision(settings, None if projector is None else Path(projector))

    def add_vision(self, settings: VisionSettings, projector: Path | None = None) -> None:
        """Give the model a vision tower and a projector.

        Args:
            settings: Win over the config.
            projector: File to fill the projector from.

        Raises:
            UserError: If a setting is not accepted, or the projector file does not fit.
        """
        config = self.config
        old_projector = (
            getattr(config, "mm_projector_type", None) or "linear",
            getattr(config, "mm_hidden_size", None),
        )
        settings.write(config)
        module: Any = self
        placed = next(module.parameters())
        self.vision_tower = build_vision_tower(config, delay_load=True)
        self.vision_tower.load_model(device=placed.device, dtype=placed.dtype)
        config.mm_hidden_size = self.vision_tower.hidden_size

        if getattr(self, "mm_projector", None) is None or old_projector != (
            config.mm_projector_type,
            config.mm_hidden_size,
        ):
            self.mm_projector = build_vision_projector(config)
            self.mm_projector.to(device=placed.device, dtype=placed.dtype)
        # The base may join its tiles otherwise.
        if self._ends_rows() and getattr(self, "image_newline", None) is None:
            self._build_newline()
            self.image_newline.data = self.image_newline.data.to(placed)
        # A base model may have been loaded with everything frozen.
        self.mm_projector.requires_grad_(True)
        if projector is not None:
            load_projector(self.mm_projector, read_tensors(projector), projector)

    def detach_vision_tower(self) -> None:
        """Take the tower out of the model's tree of modules, for training; it is used as before.

        What is no part of the model has no weights in its optimizer, its checkpoints and its copies on other
        processes, and DeepSpeed does not split it: ZeRO-3 waits for every process to run every module, but a
        tower that remembers questions does not run its text encoder equally often everywhere.
        """
        self.__dict__["vision_tower"] = self._modules.pop("vision_tower")


class LlavaMetaForCausalLM(ABC):
    """Mixin of the causal language model: turns prompts with placeholders and pixels into embeddings."""

    config: Any
    tokenizer: PreTrainedTokenizerBase | None = None
    """Reads the question from ``input_ids`` for callers that pass no ``texts``; set when loaded."""

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

    @cached_property
    def prompt_encoder(self) -> PromptEncoder:
        """Embeds this model's prompts with their images in place."""
        return PromptEncoder(self)

    def encode_images(
        self, images: Tensor, texts: Sequence[ImageText] | str | None = None
    ) -> Tensor | list[Tensor]:
        """Encode, reduce and project a batch of images: LLaVA's name and result.

        Args:
            images: Pixels, (I, 3, height, width).
            texts: What CLIP's text encoder reads for each image, see `CLIPVisionTower.forward`.

        Returns:
            Visual tokens in the language model's width: (I, n, H) where all images have n of them, as without
            a reducer, otherwise one (n_i, H) per image.

        Raises:
            UserError: If the model has no vision tower, or the reducer needs a question and there is none.
        """
        tokens = self.prompt_encoder.project_apart(self.prompt_encoder.reduce_pixels(images, None, texts))
        return torch.stack(tokens) if len(set(map(len, tokens))) == 1 else tokens

    def project_packed(self, packed: Tensor) -> Tensor:
        """Map packed visual tokens (n, D) to the language model's width, (n, H)."""
        projector = self.get_model().mm_projector
        placed = next(projector.parameters(), packed)
        packed = packed.to(placed.dtype)
        if not placed.is_meta:  # weights that accelerate keeps elsewhere fetch their inputs themselves
            packed = packed.to(placed.device)
        return projector(packed)

    def prepare_inputs_labels_for_multimodal(  # noqa: PLR0913, PLR0917 - LLaVA's signature
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        texts: Sequence[ImageText] | str | None = None,
    ) -> Prepared:
        """Replace ids by embeddings with the visual tokens in them: LLaVA's name, arguments and result.

        Args:
            input_ids: Ids with ``IMAGE_TOKEN_INDEX`` where an image belongs, (B, L).
            position_ids: Made anew where something is spliced; returned as None if missing.
            attention_mask: Which ids are not padding, (B, L); told by the padding's id if missing, and then
                returned as None.
            past_key_values: Returned as they are.
            labels: (B, L), returned as None if missing.
            images: Pixels of all images in the order of their placeholders.
            image_sizes: Width and height of the images in pixels, for ``anyres`` and for reducers that leave
                padding out.
            texts: The question per image, or per sample, or one for all; recovered from ``input_ids`` if
                missing.

        Returns:
            ids (None once embedded), position ids, mask, past key values, embeddings (B, T, H), labels (B,
            T).

        Raises:
            UserError: If placeholders and images do not match, or a question is needed and cannot be had.
        """
        ids, positions, mask, cache, embeddings, labels = self._embed_inputs(
            input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes, texts
        )
        if position_ids is None:
            positions = None
        if attention_mask is None:
            mask = None
        return ids, positions, mask, cache, embeddings, labels

    def _embed_inputs(  # noqa: PLR0913, PLR0917 - as above
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        past_key_values: Any,
        labels: Tensor | None,
        images: Images | None,
        image_sizes: Sequence[tuple[int, int]] | None,
        texts: Sequence[ImageText] | str | None,
    ) -> Prepared:
        """Do the same, and return the mask and the positions also where they were missing.

        `forward` cannot do without: prompts are padded to the longest one with its visual tokens.
        """
        check_ids(input_ids)
        if self.get_vision_tower() is None or images is None or input_ids.shape[1] == 1:
            if attention_mask is None and past_key_values is None:
                attention_mask = self.prompt_encoder.mask_of(input_ids)
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        batch = self.prompt_encoder.splice(
            input_ids,
            attention_mask,
            labels,
            images,
            image_sizes=image_sizes,
            texts=texts,
            side=getattr(self.config, "tokenizer_padding_side", None) or "right",
        )
        mask = batch.attention_mask.to(torch.long if attention_mask is None else attention_mask.dtype)
        spliced_labels = None if labels is None else batch.labels
        return None, batch.position_ids, mask, past_key_values, batch.embeddings, spliced_labels

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
            with gathered_parameters([weight]):
                load_new_rows(weight.data, read_tensors(path), path, tokenizer)
