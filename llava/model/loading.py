"""From a folder to a model: what a checkpoint is comes from its files and its config, not its name."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from llava.errors import UserError
from llava.internals import build_model
from llava.model.adapter import (
    apply_adapter,
    read_adapter_config,
    refuse_adapted_embeddings,
    warn_of_other_base,
)
from llava.model.checkpoint_configs import read_generation_config, read_llava_config
from llava.model.checkpoint_files import (
    NEWLINE,
    NON_LORA_FILE,
    PROJECTOR,
    PROJECTOR_FILE,
    TOWER,
    CheckpointKind,
    StoredWeight,
    checkpoint_kind,
    dtypes_of,
    iterate_weights,
    open_weights,
    own_file,
    read_tensors,
    resolve_folder,
    shapes_of,
    unreadable,
)
from llava.model.checkpoint_sizes import (
    check_layers,
    check_shapes,
    refuse_nonfinite,
    refuse_other_shapes,
    refuse_other_types,
    warn_of_surplus,
)
from llava.model.language_model.llava_config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.placement import Placement
from llava.model.prompt_model import LlavaPromptModel
from llava.model.weights import add_image_tokens, load_new_rows, load_projector
from llava.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

ROUNDING = 2.0**-7  # relative, twice that of bfloat16
REDUCTION_VARIABLE = "LLAVA_TOKEN_REDUCTION"
TOWER_PART = "vision_tower."  # in front of CLIP's own names, below the name of LLaVA's tower

# What training with 4-bit weights writes into an adapter's config; 4 bits are made in the same way again.
QUANTIZATION_KEYS = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
DEFAULT_CONTEXT_LENGTH = 2048  # tokens; LLaVA's value where a config names none


Model = TypeVar("Model", LlavaLlamaForCausalLM, LlavaPromptModel)


@dataclass(frozen=True, slots=True)
class LoadedModel(Generic[Model]):
    """A model that is ready to answer.

    Attributes:
        tokenizer: Of the language model.
        model: In evaluation mode; the layers of its language model may be elsewhere.
        image_processor: CLIP's, None for a plain language model.
        context_length: In tokens, as LLaVA reports it.
    """

    tokenizer: PreTrainedTokenizerBase
    model: Model
    image_processor: CLIPImageProcessorPil | None
    context_length: int


def load_checkpoint(
    model_path: str | Path,
    model_base: str | Path | None,
    placement: Placement,
    *,
    vision_tower: str | None = None,
    token_reduction: str | None = None,
) -> LoadedModel[LlavaLlamaForCausalLM]:
    """Load a full, projector-only or LoRA checkpoint.

    Args:
        model_path: Folder or hub id.
        model_base: Folder or hub id of the language model that a projector or an adapter was trained on.
        placement: Where and in which form.
        vision_tower: CLIP folder or hub id instead of the config's ``mm_vision_tower``.
        token_reduction: Setting instead of the config's ``mm_vision_token_reduce_func``.

    Raises:
        MissingFileError: If a folder or its weights are missing.
        UserError: If a config or a file does not fit.
    """
    found = find_parts(model_path, model_base, vision_tower, token_reduction)
    tokenizer = load_tokenizer(found.source)
    model = _load_weights(found, _quantized_as_trained(placement, found.config))
    _apply_beside(model, found, tokenizer)
    if found.kind is CheckpointKind.LORA:
        model = apply_adapter(model, found.folder)
    model.tokenizer = tokenizer
    tower = _load_tower(model, found, placement, is_beside=vision_tower is None)
    refuse_nonfinite(model, found.folder)
    processor = tower.image_processor if tower else None
    return LoadedModel(tokenizer, model.eval(), processor, context_length_of(found.config))


def context_length_of(config: LlavaConfig) -> int:
    """Return a model's context length in tokens, as LLaVA reports it."""
    return getattr(config, "max_sequence_length", None) or DEFAULT_CONTEXT_LENGTH


def load_prompt_model(
    model_path: str | Path,
    model_base: str | Path | None,
    placement: Placement,
    *,
    vision_tower: str | None = None,
    token_reduction: str | None = None,
) -> LlavaPromptModel:
    """Load what of a checkpoint embeds prompts; the layers of the language model are not read.

    Arguments and errors are those of `load_checkpoint`. Nothing is quantized.

    Raises:
        MissingFileError: If a folder or its weights are missing.
        UserError: If a config or a file does not fit, or an adapter changes the embedding table.
    """
    found = find_parts(model_path, model_base, vision_tower, token_reduction)
    tokenizer = load_tokenizer(found.source)
    weights = found.beside | open_weights(found.source)
    shapes = shapes_of(weights)
    surplus = check_shapes(lambda: LlavaPromptModel(found.config), shapes, found.folder)
    refuse_other_types(dtypes_of(weights), shapes.keys() - surplus, found.folder)
    with torch.device("meta"):
        model = LlavaPromptModel(found.config).requires_grad_(False)
    own = {name: weights[name][...].to(placement.dtype) for name in shapes.keys() - surplus}
    model.load_state_dict(own, assign=True)
    model.to(placement.device)
    if found.kind is CheckpointKind.LORA:
        refuse_adapted_embeddings(found.folder)
    _apply_beside(model, found, tokenizer)
    model.tokenizer = tokenizer
    model.generation_config = read_generation_config(found.source)
    _load_tower(model, found, placement, is_beside=vision_tower is None)
    refuse_nonfinite(model, found.folder)
    return model.eval()


@dataclass(frozen=True, slots=True)
class CheckpointParts:
    """A checkpoint's parts.

    Attributes:
        folder: The checkpoint's.
        kind: What it holds.
        config: Its config, with the vocabulary of the language model.
        source: Folder of the language model, which is the same for a full checkpoint.
        beside: Weights beside those of the language model, with the names of the model.
    """

    folder: Path
    kind: CheckpointKind
    config: LlavaConfig
    source: Path
    beside: dict[str, torch.Tensor]


def find_parts(
    model_path: str | Path,
    model_base: str | Path | None,
    vision_tower: str | None = None,
    token_reduction: str | None = None,
) -> CheckpointParts:
    """Find a checkpoint's parts; see `load_checkpoint`."""
    folder = resolve_folder(model_path)
    kind = checkpoint_kind(folder)
    config = read_llava_config(folder, vision_tower, token_reduction)
    if token_reduction is None:
        _reduce_as_environment_says(config, folder)
    source = _language_model_folder(folder, kind, model_base)
    # A checkpoint beside a base may have more tokens than it: they are added later.
    config.vocab_size = read_llava_config(source).vocab_size
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        config.pad_token_id = None  # one of those; an embedding table refuses it
    return CheckpointParts(folder, kind, config, source, _weights_beside(folder, kind))


def _reduce_as_environment_says(config: LlavaConfig, folder: Path) -> None:
    """Let ``LLAVA_TOKEN_REDUCTION`` win over a checkpoint's config, and say so.

    It is for programs that name a checkpoint and nothing else, such as evaluation harnesses; a model without
    a vision tower is none that it speaks of.

    Raises:
        UserError: If its value is no setting.
    """
    wanted = os.environ.get(REDUCTION_VARIABLE)
    if not wanted or getattr(config, "mm_vision_tower", None) is None:
        return
    try:
        reducer = str(parse_reduction(wanted))
    except UserError as error:
        raise UserError(f"{REDUCTION_VARIABLE}: {error}") from None
    named = getattr(config, "mm_vision_token_reduce_func", None) or "none"
    logger.warning("%s=%s is in force, not %s of %s", REDUCTION_VARIABLE, reducer, named, folder)
    config.mm_vision_token_reduce_func = reducer


def _load_tower(
    model: LlavaMetaForCausalLM, found: CheckpointParts, placement: Placement, *, is_beside: bool
) -> CLIPVisionTower | None:
    """Load a model's vision tower, if it has one, and CLIP's weights that were trained with the model.

    Args:
        model: Its tower is not loaded yet.
        found: The checkpoint.
        placement: Where and in which form.
        is_beside: Whether the tower may lie beside the checkpoint, as what its config names may; what the
            user names is where the user is.
    """
    tower = model.get_vision_tower()
    if tower is None:
        return None
    neighbor = found.folder if is_beside else None
    tower.load_model(beside=neighbor, device=model.input_device, dtype=placement.dtype)
    _check_width(tower, found.config)
    is_trained = bool(getattr(found.config, "unfreeze_mm_vision_tower", False))
    if not is_trained and _brings_other_tower(found, tower):
        is_trained = True
        logger.warning(
            "%s stores a vision tower unlike that of %s; its own is used, though its config does not say "
            "that it was trained",
            *(found.folder, tower.folder),
        )
        model.config.unfreeze_mm_vision_tower = True  # what is saved of the model must bring its tower, too
    if is_trained:
        load_trained_tower(model, found.source)
        _fill_tower(model, found.beside, found.folder)
    return tower


def _brings_other_tower(found: CheckpointParts, tower: CLIPVisionTower) -> bool:
    """Tell whether a checkpoint stores a vision tower with other weights than CLIP's, which it should name.

    Most checkpoints store a copy of CLIP, which their training has rounded to bfloat16. Of matrices the first
    rows are compared: training changes all rows.
    """
    prefix, own = f"{TOWER}{TOWER_PART}", tower.state_dict()
    stored = {
        name.removeprefix(prefix): weight
        for name, weight in (open_weights(found.source) | found.beside).items()
        if name.startswith(prefix) and name.removeprefix(TOWER) in own
    }
    if not stored:
        return False
    clip = open_weights(tower.folder)
    return any(name in clip and not _is_copy(weight, clip[name]) for name, weight in stored.items())


def _is_copy(one: StoredWeight, other: StoredWeight) -> bool:
    """Tell whether two stored weights begin alike, but for rounding; one of another shape says nothing."""
    shapes = shapes_of({"one": one, "other": other})
    if shapes["one"] != shapes["other"]:
        return True
    first, second = (weight[:1] if len(shapes["one"]) > 1 else weight[...] for weight in (one, other))
    return torch.allclose(first.float(), second.float(), rtol=ROUNDING, atol=ROUNDING * 1e-3)


def _quantized_as_trained(placement: Placement, config: LlavaConfig) -> Placement:
    """Make 4-bit weights of the type with which an adapter was trained, if its config says so."""
    if placement.quantization is None:
        return placement
    quantization = copy(placement.quantization)
    for key in QUANTIZATION_KEYS:
        setattr(quantization, key, getattr(config, key, getattr(quantization, key)))
    return replace(placement, quantization=quantization)


def _language_model_folder(folder: Path, kind: CheckpointKind, model_base: str | Path | None) -> Path:
    """Find the language model of a checkpoint: its own folder, or the base it goes with.

    Raises:
        UserError: If a base is needed and not named.
    """
    if kind is CheckpointKind.FULL:
        if model_base is not None:
            logger.warning("%s is a full checkpoint; --model-base %s is not used", folder, model_base)
        return folder
    if model_base is not None:
        if kind is CheckpointKind.LORA:
            warn_of_other_base(folder, model_base)
        return resolve_folder(model_base)
    if kind is CheckpointKind.LORA:
        named = read_adapter_config(folder).get("base_model_name_or_path")
        if named:
            return resolve_folder(named, beside=folder)
    raise UserError(
        f"{folder} holds only {kind.value}: name the language model it was trained on with --model-base"
    )


def _check_width(tower: CLIPVisionTower, config: LlavaConfig) -> None:
    """Refuse a CLIP that the projector was not made for."""
    if tower.hidden_size != config.mm_hidden_size:
        raise UserError(
            f"the vision tower {tower.folder} has features of width {tower.hidden_size}, and the projector "
            f"of this checkpoint takes {config.mm_hidden_size}"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence reports on keys and progress: what matters of them is checked here and raised as an error."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def load_language_model(source: Path, config: LlavaConfig, placement: Placement) -> LlavaLlamaForCausalLM:
    """Load the weights of a folder into a LLaVA model, all of them.

    Args:
        source: Folder of a whole LLaVA or language model.
        config: Of the model to build; it has a projector if ``mm_vision_tower`` is set.
        placement: Where and in which form.

    Raises:
        UserError: If weights are damaged, missing or of another shape.
    """
    return _load_weights(CheckpointParts(source, CheckpointKind.FULL, config, source, {}), placement)


def _load_weights(found: CheckpointParts, placement: Placement) -> LlavaLlamaForCausalLM:
    """Build a model and load what the language model's folder holds of it.

    Raises:
        UserError: If weights are damaged, missing or of another shape.
    """
    source, config = found.source, found.config
    weights = open_weights(source)
    check_fit(found, weights)
    if is_deepspeed_zero3_enabled():  # whose loader takes tensors only
        weights = {name: weight[...] for name, weight in weights.items()}
    device_map = placement.device_map
    if device_map is None and (placement.device.type != "cpu" or placement.quantization is not None):
        device_map = {"": placement.device}
    try:
        with quiet_transformers():
            # The library gets weights and settings and never the folder, of which it would read more.
            model = LlavaLlamaForCausalLM.from_pretrained(
                None,
                config=config,
                state_dict=weights,
                generation_config=read_generation_config(source),
                dtype=placement.dtype,
                device_map=device_map,
                max_memory=placement.max_memory,
                offload_folder=placement.offload_folder,
                attn_implementation=placement.attn_implementation,
                quantization_config=placement.quantization,
            )
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(source, error)) from None
    except ValueError as error:
        if "offload_folder" not in str(error):
            raise
        raise UserError(
            f"the weights of {source} do not fit into the memory of this machine's devices; use --load-4bit "
            "or --load-8bit (in Python, load_pretrained_model also takes offload_folder=)"
        ) from None
    model.config.name_or_path = model.name_or_path = str(source)
    if placement.quantization is not None:
        _avoid_packing_odd_sizes(model)
    return model


def _avoid_packing_odd_sizes(model: LlavaLlamaForCausalLM) -> None:
    """Leave 4-bit weights of unusual sizes as they are stored, which is slower and works on every CPU.

    On CPUs with AVX512-BF16, bitsandbytes 0.50 packs 4-bit weights anew at their first use, and fails where a
    layer's inputs are no multiple of the quantization's block, or its outputs none of 32.
    """
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None and (layer.in_features % state.blocksize or layer.out_features % 32):
            layer.support_avx512bf16_for_cpu = False


def check_fit(found: CheckpointParts, weights: dict[str, StoredWeight]) -> None:
    """Refuse a config that does not describe the weights of a model, and say which of them are not read.

    Raises:
        UserError: If weights are missing or of another shape.
    """
    config, folder = found.config, found.folder
    shapes = shapes_of(found.beside | weights)
    check_layers(config.num_hidden_layers, shapes, "model.layers.", folder)
    if config.tie_word_embeddings and "model.embed_tokens.weight" in shapes:
        shapes.setdefault("lm_head.weight", shapes["model.embed_tokens.weight"])
    surplus = check_shapes(lambda: build_model(LlavaLlamaForCausalLM, config, "eager"), shapes, folder)
    refuse_other_types(dtypes_of(found.beside | weights), shapes.keys() - surplus, folder)
    # CLIP comes from its own folder, and old checkpoints store what is computed from the config.
    known = {name for name in surplus if name.startswith(TOWER) or name.endswith("rotary_emb.inv_freq")}
    warn_of_surplus(surplus - known - found.beside.keys(), folder)


def _weights_beside(folder: Path, kind: CheckpointKind) -> dict[str, torch.Tensor]:
    """Read what a checkpoint has beside its base's weights, with the names that they have in the model."""
    if kind is CheckpointKind.FULL:
        return {}
    file = PROJECTOR_FILE if kind is CheckpointKind.PROJECTOR else NON_LORA_FILE
    stored = read_tensors(own_file(folder, file) or folder / file)
    # CLIP's positions are whole numbers, where a whole tower is stored too.
    refuse_other_types(dtypes_of(stored), [name for name in stored if TOWER not in name], folder / file)
    if kind is CheckpointKind.PROJECTOR:
        # The names may carry any prefix.
        return {
            f"model.mm_projector.{name.split(PROJECTOR, 1)[1]}" if PROJECTOR in name else name: tensor
            for name, tensor in stored.items()
        }
    trained = {name.removeprefix("base_model."): tensor for name, tensor in stored.items()}
    if any(name.startswith("model.model.") for name in trained):
        trained = {name.removeprefix("model."): tensor for name, tensor in trained.items()}
    return trained


def _apply_beside(
    model: LlavaLlamaForCausalLM | LlavaPromptModel,
    found: CheckpointParts,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Load what a checkpoint has beside the base's weights, except for an adapter's layers.

    Raises:
        UserError: If it does not fit.
    """
    if getattr(found.config, "mm_vision_tower", None) is not None:
        add_image_tokens(model, tokenizer, found.config)
    if found.kind is CheckpointKind.PROJECTOR:
        _apply_projector(model, found, tokenizer)
    if found.kind is CheckpointKind.LORA:
        _apply_trained(model, found)


def _apply_projector(
    model: LlavaLlamaForCausalLM | LlavaPromptModel,
    found: CheckpointParts,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Load what stage 1 left: the projector, and what it has of embeddings and the token between lines."""
    path, stored = found.folder / PROJECTOR_FILE, found.beside
    load_projector(model.get_model().mm_projector, stored, path)
    if getattr(model.config, "mm_use_im_start_end", False):
        load_new_rows(model.get_input_embeddings().weight.data, stored, path, tokenizer, all_rows=True)
    _fill(model, {name: tensor for name, tensor in stored.items() if name == NEWLINE}, path)


def _apply_trained(model: LlavaLlamaForCausalLM | LlavaPromptModel, found: CheckpointParts) -> None:
    """Load what was trained beside an adapter.

    Raises:
        UserError: If it does not fit.
    """
    # A published TRIM run also stored its frozen CLIP here; CLIP comes from its own folder.
    trained = {name: value for name, value in found.beside.items() if TOWER not in name}
    _match_vocabulary(model, trained)
    unexpected = _fill(model, trained, found.folder / NON_LORA_FILE)
    if unexpected and isinstance(model, LlavaLlamaForCausalLM):
        raise UserError(
            f"{found.folder / NON_LORA_FILE} holds weights of no part of the model: {unexpected[0]}"
        )


def _fill(module: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> list[str]:
    """Copy weights into a module that may have more of them; return the names of those that it has not.

    Raises:
        UserError: If one is of another shape.
    """
    surplus = refuse_other_shapes(module.state_dict(), shapes_of(weights), f"{path} does not fit this model")
    module.load_state_dict(weights, strict=False)
    return sorted(surplus)


def _match_vocabulary(
    model: LlavaLlamaForCausalLM | LlavaPromptModel, trained: dict[str, torch.Tensor]
) -> None:
    """Resize the embeddings to those that were trained beside an adapter, if they were."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in trained:
            rows, width = model.config.vocab_size, model.config.hidden_size
            shape = tuple(trained[name].shape)
            if len(shape) != 2 or shape[0] < rows or shape[1] != width:
                raise UserError(
                    f"{NON_LORA_FILE} has {name} of shape {shape}; accepted: ({rows} or more, {width})"
                )
        if name in trained and len(trained[name]) != model.config.vocab_size:
            model.resize_token_embeddings(len(trained[name]))


def load_trained_tower(model: LlavaMetaForCausalLM, folder: Path) -> None:
    """Overwrite CLIP's weights by those that a checkpoint trained itself (``unfreeze_mm_vision_tower``)."""
    _fill_tower(model, dict(iterate_weights(folder, (TOWER,))), folder)


def _fill_tower(model: LlavaMetaForCausalLM, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Copy into the loaded tower what ``weights`` have of it, under the names of checkpoints."""
    tower = model.get_vision_tower()
    assert tower is not None
    own = tower.state_dict()
    named = {name.removeprefix(TOWER): tensor for name, tensor in weights.items() if name.startswith(TOWER)}
    _fill(tower, {name: tensor for name, tensor in named.items() if name in own}, path)
    tower.has_own_weights = True
    tower.clear_text_cache()
