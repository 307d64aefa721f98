"""From arguments to a model that is ready to train: base, vision, tokens, and what of it learns."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, set_seed

from llava.conversation import conv_templates
from llava.errors import MissingFileError, UserError
from llava.model.checkpoint_configs import read_llava_config
from llava.model.checkpoint_files import CheckpointKind, checkpoint_kind, name_elsewhere, resolve_folder
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading import load_language_model, load_trained_tower
from llava.model.multimodal_encoder.reducers.base import Method
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.placement import Placement, choose_attention, choose_quantization
from llava.tokenizer import load_tokenizer
from llava.train.arguments import (
    ASPECT_RATIOS,
    DataArguments,
    ModelArguments,
    TrainingArguments,
    check_choice,
)
from llava.train.lora import LoraSettings, add_lora

logger = logging.getLogger(__name__)

# LLaVA's version names that are no names of templates.
TEMPLATE_OF_VERSION = {"v1": "vicuna_v1", "v0.5": "vicuna_v1"}

# Flags whose omission means "as in the base checkpoint"; their config keys.
BASE_SETTINGS = {
    "vision_tower": "mm_vision_tower",
    "mm_vision_select_layer": "mm_vision_select_layer",
    "mm_vision_select_feature": "mm_vision_select_feature",
    "mm_projector_type": "mm_projector_type",
    "mm_patch_merge_type": "mm_patch_merge_type",
    "mm_vision_token_reduce_func": "mm_vision_token_reduce_func",
    "mm_use_im_start_end": "mm_use_im_start_end",
    "mm_use_im_patch_token": "mm_use_im_patch_token",
    "image_aspect_ratio": "image_aspect_ratio",
}

# What to do with a checkpoint that is no base.
INSTEAD = {
    CheckpointKind.LORA: "which scripts/merge_lora_weights.py makes a full checkpoint of",
    CheckpointKind.PROJECTOR: "which --pretrain_mm_mlp_adapter reads; name a full checkpoint",
}


def template_of_version(version: str) -> str:
    """Return the template that a ``--version`` trains with; it is also what config.json names.

    Raises:
        UserError: If there is no such version.
    """
    name = TEMPLATE_OF_VERSION.get(version, version)
    if name not in conv_templates:
        accepted = ", ".join(sorted({*conv_templates, *TEMPLATE_OF_VERSION}))
        raise UserError(f"--version {version!r} does not exist; accepted: {accepted}")
    return name


@dataclass(frozen=True, slots=True)
class Base:
    """The checkpoint that training begins with.

    Attributes:
        folder: Where it is.
        config: Its config.
        keeps_tower: Whether the vision tower is its own, and not another one that was asked for.
    """

    folder: Path
    config: LlavaConfig
    keeps_tower: bool


def read_base(
    model_args: ModelArguments, data_args: DataArguments, given: frozenset[str] = frozenset()
) -> Base:
    """Find the base checkpoint, and let it fill in what the command line leaves open.

    A flag that is given wins; without it a LLaVA checkpoint is trained on as it was, so that what trains is
    also what is saved.

    Args:
        model_args: Completed in place.
        data_args: Completed in place.
        given: Options on the command line, from `given_options`; their values may be the defaults.

    Raises:
        UserError: If a setting is not accepted or needs a vision tower that is not there.
        MissingFileError: If the base, CLIP or the projector's file is missing.
    """
    folder = resolve_folder(model_args.model_name_or_path)
    kind = checkpoint_kind(folder)
    if kind is not CheckpointKind.FULL:
        raise UserError(f"{folder} holds only {kind.value}, {INSTEAD[kind]}")
    config = read_llava_config(folder)
    model_args.vision_tower = model_args.vision_tower or None
    keeps_tower = False
    if getattr(config, "mm_vision_tower", None):
        for arguments in (model_args, data_args):
            _inherit(arguments, config, given)
        keeps_tower = model_args.vision_tower == config.mm_vision_tower
    check_choice("--image_aspect_ratio", data_args.image_aspect_ratio, ASPECT_RATIOS)
    parse_reduction(model_args.mm_vision_token_reduce_func)
    if model_args.vision_tower is None:
        _refuse_vision_settings(model_args)
    else:
        beside = folder if keeps_tower else None
        resolve_folder(model_args.vision_tower, beside)
        model_args.vision_tower = name_elsewhere(model_args.vision_tower, beside)
    adapter = model_args.pretrain_mm_mlp_adapter
    if adapter is not None and not Path(adapter).is_file():
        raise MissingFileError(f"no projector file {adapter!r} (--pretrain_mm_mlp_adapter)")
    return Base(folder, config, keeps_tower)


def _inherit(arguments: Any, config: LlavaConfig, given: frozenset[str]) -> None:
    """Take the base's settings where an argument is neither on the command line nor set otherwise.

    Args:
        arguments: Completed in place.
        config: Of the base.
        given: Options on the command line; their values may be the defaults.
    """
    for argument in fields(arguments):
        name, default = argument.name, argument.default
        if name not in BASE_SETTINGS or name in given or getattr(arguments, name) != default:
            continue
        value = getattr(config, BASE_SETTINGS[name], None)
        if value not in (None, default):
            logger.info("--%s is not given: %s, as in the base", name, value)
            setattr(arguments, name, value)


def _refuse_vision_settings(model_args: ModelArguments) -> None:
    """Refuse settings that mean nothing without a vision tower."""
    for name in ("tune_mm_mlp_adapter", "pretrain_mm_mlp_adapter", "mm_vision_token_reduce_func"):
        if getattr(model_args, name) not in (None, False, "none"):
            raise UserError(f"--{name} needs a vision tower: give --vision_tower, a CLIP folder or hub id")


def build_model(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    base: Base,
    attn_implementation: str | None = None,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load the base, give it vision, and decide what of it learns.

    Args:
        model_args: As `read_base` completed them.
        data_args: Gets the image processor.
        training_args: Types and lengths.
        base: What `read_base` returned.
        attn_implementation: ``flash_attention_2`` to ask for it; used where it can be.

    Returns:
        The model, which the trainer moves to where it learns, and its tokenizer; with LoRA peft's wrapper
        around the model.
    """
    set_seed(training_args.seed)  # a new projector begins at random
    placement = placement_of_base(training_args, attn_implementation is not None)
    model = load_language_model(base.folder, base.config, placement)
    model.config.use_cache = False
    tokenizer = load_tokenizer(base.folder, model_max_length=training_args.model_max_length)
    trained: Any = model
    if training_args.lora_enable:
        trained = add_lora(
            model, LoraSettings.of(training_args), name_elsewhere(model_args.model_name_or_path)
        )
    if training_args.gradient_checkpointing:
        model.enable_input_require_grads()
    known_tokens = len(tokenizer)
    if model_args.vision_tower is not None:
        trained_with = base.keeps_tower and bool(getattr(base.config, "unfreeze_mm_vision_tower", False))
        _add_vision(
            model, tokenizer, (model_args, data_args, training_args), base.folder if trained_with else None
        )
    freeze(model, TrainedParts.of(model_args, training_args, new_tokens=len(tokenizer) > known_tokens))
    if not training_args.deepspeed:  # which keeps such copies itself
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    model.tokenizer = tokenizer
    return trained, tokenizer


def check_reducer(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Refuse a reduction that processes which share weights would wait for each other with for ever.

    Raises:
        UserError: If each process would gather weights as often as it has images.
    """
    reducer = parse_reduction(model_args.mm_vision_token_reduce_func)
    if (
        training_args.is_zero3
        and isinstance(reducer, Method)
        and (reducer.needs_projected or reducer.needs_words)
    ):
        raise UserError(
            f"{reducer} runs the projector or the embeddings for each image, which does not go with ZeRO-3: "
            "use scripts/zero2.json"
        )


def placement_of_base(training_args: TrainingArguments, wants_flash_attention: bool = False) -> Placement:
    """Decide in which form the base is loaded.

    Weights that learn stay in float32, because small updates vanish in 16 bits; DeepSpeed keeps such copies
    itself. A base that does not learn takes the type it computes in.

    Args:
        training_args: What learns, device, types, LoRA and bits.
        wants_flash_attention: Whether it was asked for.
    """
    compute_dtype = training_args.compute_dtype
    is_frozen = training_args.saves is not CheckpointKind.FULL
    quantization = choose_quantization(
        training_args.bits == 8,
        training_args.bits == 4,
        compute_dtype,
        quant_type=training_args.quant_type,
        double_quant=training_args.double_quant,
    )
    return Placement(
        # Quantized weights are made where they stay; others are moved by the trainer.
        device=torch.device("cpu") if quantization is None else training_args.device,
        dtype=compute_dtype if is_frozen or training_args.deepspeed else torch.float32,
        attn_implementation=choose_attention(training_args.device, compute_dtype, wants_flash_attention),
        quantization=quantization,
    )


def _add_vision(
    model: LlavaLlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    arguments: tuple[ModelArguments, DataArguments, TrainingArguments],
    trained_with: Path | None,
) -> None:
    """Give the model its tower, projector and image tokens, and write LLaVA's keys into its config.

    Args:
        model: Changed in place.
        tokenizer: Likewise.
        arguments: Of the run.
        trained_with: The checkpoint with which the tower was trained, if it was.
    """
    model_args, data_args, training_args = arguments
    inner: Any = model.get_model()
    projector = getattr(inner, "mm_projector", None)
    inner.initialize_vision_modules(model_args)
    if inner.mm_projector is not projector:
        _tell_of_new_projector(model_args, replaces=projector is not None)
    tower = model.get_vision_tower()
    assert tower is not None
    # CLIP may have been trained with the base, by the published code; such weights are in no file of CLIP's.
    if trained_with is not None:
        load_trained_tower(model, trained_with)
    if training_args.device.type == "cuda":
        tower.to(dtype=training_args.compute_dtype)
    tower.to(device=training_args.device)
    inner.detach_vision_tower()
    data_args.image_processor = tower.image_processor
    data_args.is_multimodal = True
    data_args.mm_use_im_start_end = model_args.mm_use_im_start_end
    model.config.update(
        {
            "unfreeze_mm_vision_tower": trained_with is not None,
            "image_aspect_ratio": data_args.image_aspect_ratio,
            "tokenizer_padding_side": tokenizer.padding_side,
            "tokenizer_model_max_length": tokenizer.model_max_length,
            "tune_mm_mlp_adapter": model_args.tune_mm_mlp_adapter,
            "freeze_mm_mlp_adapter": training_args.freeze_mm_mlp_adapter,
            "mm_use_im_start_end": model_args.mm_use_im_start_end,
            "mm_use_im_patch_token": model_args.mm_use_im_patch_token,
            "mm_projector_lr": training_args.mm_projector_lr,
            "conv_template": template_of_version(model_args.version),
        }
    )
    model.initialize_vision_tokenizer(model_args, tokenizer)


def _tell_of_new_projector(model_args: ModelArguments, replaces: bool) -> None:
    """Warn of a projector that knows nothing yet where a trained one is to be expected."""
    if model_args.pretrain_mm_mlp_adapter is not None:
        return
    kind = model_args.mm_projector_type
    if replaces:
        logger.warning("the base's projector is not %s for this CLIP: a new one begins at random", kind)
    elif not model_args.tune_mm_mlp_adapter:
        logger.warning("the projector begins at random: --pretrain_mm_mlp_adapter names a trained one")


@dataclass(frozen=True, slots=True)
class TrainedParts:
    """What of a model is trained; CLIP never is.

    Attributes:
        lora: Whether an adapter is, instead of the language model.
        frozen_backbone: Whether the language model's layers stay as they are.
        projector_only: Whether nothing but the projector is, and the tokens that go with it.
        frozen_projector: Whether the projector stays as it is.
        start_end_tokens: Whether images stand between tokens of their own.
        new_tokens: Whether the embeddings got rows that the base has not.
    """

    lora: bool = False
    frozen_backbone: bool = False
    projector_only: bool = False
    frozen_projector: bool = False
    start_end_tokens: bool = False
    new_tokens: bool = False

    @classmethod
    def of(
        cls, model_args: ModelArguments, training_args: TrainingArguments, new_tokens: bool
    ) -> TrainedParts:
        """Read LLaVA's arguments."""
        return cls(
            lora=training_args.lora_enable,
            frozen_backbone=model_args.freeze_backbone,
            projector_only=model_args.tune_mm_mlp_adapter,
            frozen_projector=training_args.freeze_mm_mlp_adapter,
            start_end_tokens=model_args.mm_use_im_start_end,
            new_tokens=new_tokens,
        )


def freeze(model: LlavaLlamaForCausalLM, parts: TrainedParts) -> None:
    """Decide what is trained, whatever was before.

    Args:
        model: With its vision modules, if it gets any, and its adapter, if it gets one.
        parts: What is to be trained.
    """
    inner: Any = model.get_model()
    projector: nn.Module | None = getattr(inner, "mm_projector", None)
    if parts.lora:
        # Rows that no base has must be trained, and so be saved.
        model.get_input_embeddings().requires_grad_(parts.new_tokens)
    elif parts.frozen_backbone:
        inner.requires_grad_(False)
    if parts.projector_only:
        model.requires_grad_(False)
        # New tokens are trained with the projector; the head does not write them.
        model.get_input_embeddings().requires_grad_(parts.start_end_tokens)
    if projector is not None:
        projector.requires_grad_(not parts.frozen_projector)
    tower = model.get_vision_tower()
    if tower is not None:
        tower.requires_grad_(False)
