"""From a folder to a model: what a checkpoint is comes from its files and its config, not its name (D9)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from llava.errors import MissingFileError, UserError
from llava.model.checkpoint_files import (
    iterate_file,
    iterate_weights,
    read_config,
    read_tensors,
    resolve_folder,
    unreadable,
    weight_files,
)
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.llava_arch import add_image_tokens, load_new_rows, load_projector
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.placement import Placement
from llava.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

SUPPORTED_MODEL_TYPES = ("llava_llama", "llava", "llama")
TOWER = "model.vision_tower."
NEWLINE = "model.image_newline"
PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
# What training with 4-bit weights writes into an adapter's config; 4 bits are made in the same way again.
QUANTIZATION_KEYS = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DEFAULT_CONTEXT_LENGTH = 2048  # tokens; LLaVA's value where a config names none


class CheckpointKind(Enum):
    """What a checkpoint folder holds, in the words of messages."""

    FULL = "a whole model"
    """Every weight of the language model, and of the projector if it has one."""
    PROJECTOR = "a projector"
    """``mm_projector.bin``, to go with a base model."""
    LORA = "a LoRA adapter"
    """Adapter and ``non_lora_trainables.bin``, to go with a base model."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to answer.

    Attributes:
        tokenizer: Of the language model.
        model: In evaluation mode.
        image_processor: CLIP's, None for a plain language model.
        context_length: In tokens, as LLaVA reports it.
    """

    tokenizer: PreTrainedTokenizerBase
    model: LlavaLlamaForCausalLM
    image_processor: CLIPImageProcessorPil | None
    context_length: int


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """Tell a checkpoint's kind from its files.

    Raises:
        MissingFileError: If the folder holds none of the three.
    """
    if any((folder / name).is_file() for name in ADAPTER_FILES):
        return CheckpointKind.LORA
    # A whole model may also ship mm_projector.bin, so its weights are looked for first.
    if weight_files(folder):
        return CheckpointKind.FULL
    if (folder / PROJECTOR_FILE).is_file():
        return CheckpointKind.PROJECTOR
    raise MissingFileError(
        f"{folder} has no weights: expected model.safetensors or pytorch_model.bin (or their shards), "
        "mm_projector.bin, or a LoRA adapter (adapter_model.safetensors)"
    )


def load_checkpoint(
    model_path: str,
    model_base: str | None,
    placement: Placement,
    *,
    vision_tower: str | None = None,
    token_reduction: str | None = None,
) -> LoadedModel:
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
    folder = resolve_folder(model_path)
    kind = checkpoint_kind(folder)
    config = read_llava_config(folder, vision_tower, token_reduction)
    placement = _quantized_as_trained(placement, config)
    source = _language_model_folder(folder, kind, model_base)
    tokenizer = load_tokenizer(source)
    # A checkpoint beside a base may have more tokens than it: they are added below.
    config.vocab_size = read_config(source).get("vocab_size", config.vocab_size)
    model, missing = _load_weights(source, config, placement)
    if getattr(config, "mm_vision_tower", None) is not None:
        add_image_tokens(model, tokenizer, config)
    trained: dict[str, torch.Tensor] = {}
    if kind is CheckpointKind.PROJECTOR:
        missing -= _apply_projector(model, folder, tokenizer)
    if kind is CheckpointKind.LORA:
        trained = _trained_beside_adapter(folder)
        model = _apply_lora(model, folder, trained)
        missing -= trained.keys()
    _refuse_missing(missing, source if kind is CheckpointKind.FULL else folder)
    model.tokenizer = tokenizer
    tower = model.get_vision_tower()
    if tower is not None:
        # What a config names may lie beside it; what the user names is where the user is.
        beside = folder if vision_tower is None else None
        tower.load_model(beside=beside, device=model.input_device, dtype=placement.dtype)
        _check_width(tower, config)
        if getattr(config, "unfreeze_mm_vision_tower", False):
            load_trained_tower(model, source)
            _fill_tower(model, trained)
    context_length = getattr(config, "max_sequence_length", None) or DEFAULT_CONTEXT_LENGTH
    return LoadedModel(tokenizer, model.eval(), tower.image_processor if tower else None, context_length)


def read_llava_config(
    folder: Path, vision_tower: str | None = None, token_reduction: str | None = None
) -> LlavaConfig:
    """Read a checkpoint's config as a LLaVA config, whatever its ``model_type`` calls it.

    Args:
        folder: The checkpoint's.
        vision_tower: Replaces ``mm_vision_tower``.
        token_reduction: Replaces ``mm_vision_token_reduce_func``.

    Raises:
        MissingFileError: If there is no config.json.
        UserError: If the model is of another family.
    """
    values = read_config(folder)
    # transformers has a Llava of its own under the name "llava" (facts 10), so the type is read here and not
    # by it.
    model_type = values.pop("model_type", "llama")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"{folder} holds a model of type {model_type!r}; supported: {', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    if "text_config" in values:
        raise UserError(
            f"{folder} is in transformers' own LLaVA format (text_config in config.json); use the original "
            "checkpoint, for example liuhaotian/llava-v1.5-7b"
        )
    try:
        config = LlavaConfig.from_dict(values)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is no Llama config: {error}") from None
    if vision_tower is not None:
        config.mm_vision_tower = vision_tower
    if token_reduction is not None:
        config.mm_vision_token_reduce_func = token_reduction
    _check_vision_keys(config, folder)
    return config


def _check_vision_keys(config: LlavaConfig, folder: Path) -> None:
    """Refuse a config that names a vision tower without what goes with it, or the reverse."""
    if getattr(config, "mm_vision_tower", None):
        for key in ("mm_vision_select_layer", "mm_hidden_size"):
            if not isinstance(getattr(config, key, None), int):
                raise UserError(
                    f"{folder / 'config.json'} names a vision tower and lacks a whole number {key}"
                )
        return
    reduction = getattr(config, "mm_vision_token_reduce_func", None)
    if reduction not in (None, "none"):
        raise UserError(f"token reduction {reduction!r} needs a vision tower, and {folder} has none")


def _quantized_as_trained(placement: Placement, config: LlavaConfig) -> Placement:
    """Make 4-bit weights of the type with which an adapter was trained, if its config says so."""
    if placement.quantization is None:
        return placement
    quantization = copy(placement.quantization)
    for key in QUANTIZATION_KEYS:
        setattr(quantization, key, getattr(config, key, getattr(quantization, key)))
    return replace(placement, quantization=quantization)


def _language_model_folder(folder: Path, kind: CheckpointKind, model_base: str | None) -> Path:
    """Find the language model of a checkpoint: its own folder, or the base it goes with.

    Raises:
        UserError: If a base is needed and not named.
    """
    if kind is CheckpointKind.FULL:
        if model_base is not None:
            logger.warning("%s is a whole model; --model-base %s is not used", folder, model_base)
        return folder
    if model_base is not None:
        return resolve_folder(model_base)
    if kind is CheckpointKind.LORA:
        named = read_config(folder, "adapter_config.json").get("base_model_name_or_path")
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
def _quiet_transformers() -> Iterator[None]:
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
    model, missing = _load_weights(source, config, placement)
    _refuse_missing(missing, source)
    return model


def _refuse_missing(names: set[str], folder: Path) -> None:
    """Refuse to go on with weights that no file supplied."""
    if names:
        raise UserError(f"{folder} lacks {len(names)} weights of the model, the first is {min(names)}")


def _load_weights(
    source: Path, config: LlavaConfig, placement: Placement
) -> tuple[LlavaLlamaForCausalLM, set[str]]:
    """Load what a folder holds, and say which weights it does not hold.

    Raises:
        UserError: If weights are damaged or of another shape.
    """
    device_map = placement.device_map
    if device_map is None and (placement.device.type != "cpu" or placement.quantization is not None):
        device_map = {"": placement.device}
    try:
        with _quiet_transformers():
            model, report = LlavaLlamaForCausalLM.from_pretrained(
                source,
                config=config,
                dtype=placement.dtype,
                device_map=device_map,
                attn_implementation=placement.attn_implementation,
                quantization_config=placement.quantization,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                weights_only=True,
            )
    except (UnpicklingError, SafetensorError, EOFError, OSError) as error:
        raise UserError(unreadable(source, error)) from None
    except RuntimeError as error:  # torch has no type of its own for a damaged file
        if "PytorchStreamReader" not in str(error):
            raise
        raise UserError(unreadable(source, error)) from None
    wrong = [
        f"{name}: {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in report["mismatched_keys"]
    ]
    if wrong:
        raise UserError(f"{source} does not fit the config: {wrong[0]}")
    return model, set(report["missing_keys"])


def _apply_projector(
    model: LlavaLlamaForCausalLM, folder: Path, tokenizer: PreTrainedTokenizerBase
) -> set[str]:
    """Load what stage 1 left: the projector, and what it has of embeddings and the token between lines.

    Returns:
        Names of the weights supplied.
    """
    path = folder / PROJECTOR_FILE
    stored = read_tensors(path)
    load_projector(model.get_model().mm_projector, stored, path)
    if getattr(model.config, "mm_use_im_start_end", False):
        load_new_rows(model.get_input_embeddings().weight.data, stored, path, tokenizer, all_rows=True)
    newline = {name: tensor for name, tensor in stored.items() if name == NEWLINE}
    model.load_state_dict(newline, strict=False)
    return {name for name in model.state_dict() if "mm_projector." in name} | newline.keys()


def _apply_lora(
    model: LlavaLlamaForCausalLM, folder: Path, trained: dict[str, torch.Tensor]
) -> LlavaLlamaForCausalLM:
    """Load what was trained beside the adapter, then the adapter, and merge it where the weights are whole.

    Args:
        model: The base.
        folder: The adapter's.
        trained: From `_trained_beside_adapter`.

    Returns:
        The model.

    Raises:
        UserError: If peft is not installed or the files do not fit.
    """
    if find_spec("peft") is None:
        raise UserError("LoRA checkpoints need peft: pip install 'llava[train]'")
    from peft import PeftModel

    # A published TRIM run also stored its frozen CLIP here (facts B5); CLIP comes from its own folder.
    trained = {name: value for name, value in trained.items() if TOWER not in name}
    adapter = next(path for path in map(folder.joinpath, ADAPTER_FILES) if path.is_file())
    if any("vision_tower." in name for name, _ in iterate_file(adapter)):
        raise UserError(
            f"{folder} adapts the vision tower; only adapters of the language model are supported"
        )
    _match_vocabulary(model, trained)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise UserError(f"{folder / NON_LORA_FILE} holds weights of no part of the model: {unexpected[0]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        adapted = PeftModel.from_pretrained(model, str(folder))  # changes the model itself
    # Quantized weights would be rounded once more: there the adapter stays beside them, as it learned.
    return model if getattr(model, "is_quantized", False) else adapted.merge_and_unload()


def _trained_beside_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Read ``non_lora_trainables.bin``, with the names that the weights have in the model."""
    trained = read_tensors(folder / NON_LORA_FILE)
    trained = {name.removeprefix("base_model."): tensor for name, tensor in trained.items()}
    if any(name.startswith("model.model.") for name in trained):
        trained = {name.removeprefix("model."): tensor for name, tensor in trained.items()}
    return trained


def _match_vocabulary(model: LlavaLlamaForCausalLM, trained: dict[str, torch.Tensor]) -> None:
    """Resize the embeddings to those that were trained beside an adapter, if they were."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in trained and len(trained[name]) != model.config.vocab_size:
            model.resize_token_embeddings(len(trained[name]))


def load_trained_tower(model: LlavaLlamaForCausalLM, folder: Path) -> None:
    """Overwrite CLIP's weights by those that a checkpoint trained itself (``unfreeze_mm_vision_tower``)."""
    _fill_tower(model, dict(iterate_weights(folder, (TOWER,))))


def _fill_tower(model: LlavaLlamaForCausalLM, weights: dict[str, torch.Tensor]) -> None:
    """Copy into the loaded tower what ``weights`` have of it, under the names of checkpoints."""
    tower = model.get_vision_tower()
    assert tower is not None
    own = tower.state_dict()
    named = {name.removeprefix(TOWER): tensor for name, tensor in weights.items() if name.startswith(TOWER)}
    tower.load_state_dict({name: tensor for name, tensor in named.items() if name in own}, strict=False)
    tower.forget_texts()
