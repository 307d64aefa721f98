"""From a folder to a model: what a checkpoint is comes from its files and its config, not its name (D9).

Device, types, attention and quantization are decided here once, for every caller.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig, CLIPImageProcessorPil, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_PATCH_TOKEN
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
from llava.model.llava_arch import load_projector
from llava.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}
SUPPORTED_MODEL_TYPES = ("llava_llama", "llava", "llama")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DEFAULT_CONTEXT_LENGTH = 2048  # tokens; LLaVA's value where a config names none


class CheckpointKind(Enum):
    """What a checkpoint folder holds."""

    FULL = auto()
    """Every weight of the language model, and of the projector if it has one."""
    PROJECTOR = auto()
    """``mm_projector.bin``, to go with a base model."""
    LORA = auto()
    """A LoRA adapter and ``non_lora_trainables.bin``, to go with a base model."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and in which form a model is loaded.

    Attributes:
        device: Device of the vision tower and, without ``device_map``, of everything.
        dtype: Type of all weights that are not quantized.
        device_map: How accelerate spreads the language model over several devices, if it is to.
        attn_implementation: Name of transformers' attention.
        quantization: 8-bit or 4-bit settings of the language model.
    """

    device: torch.device
    dtype: torch.dtype
    device_map: Any = None
    attn_implementation: str = "sdpa"
    quantization: BitsAndBytesConfig | None = None


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


def best_device() -> torch.device:
    """Return the device this machine computes best on."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def parse_device(name: str | torch.device | None) -> torch.device:
    """Read a device name; None is the best there is.

    Raises:
        UserError: If the name is no device, or the machine has no such device.
    """
    if name is None:
        return best_device()
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # torch asserts where it was built without a backend.
        reason = str(error).splitlines()[0]
        raise UserError(
            f"device {str(name)!r} cannot be used here ({reason}); accepted: cpu, cuda, cuda:N, mps"
        ) from None
    return device


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Read a float type; None is float32 on a CPU, float16 elsewhere (D13).

    Raises:
        UserError: If the name is not one of the accepted ones.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"{dtype!r} is no float type; accepted: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def choose_attention(device: torch.device, dtype: torch.dtype, wanted: bool = False) -> str:
    """Return flash attention where it is installed and usable, otherwise PyTorch's own fused attention."""
    usable = device.type == "cuda" and dtype != torch.float32 and is_flash_attn_2_available()
    if wanted and not usable:
        logger.warning(
            "flash attention needs CUDA, a 16-bit type and llava[flash]; using PyTorch's attention instead"
        )
    return "flash_attention_2" if usable else "sdpa"


def choose_quantization(
    load_8bit: bool, load_4bit: bool, compute_dtype: torch.dtype
) -> BitsAndBytesConfig | None:
    """Return LLaVA's settings for 8-bit or 4-bit (nf4, double quantization) weights, or None.

    Raises:
        UserError: If both are asked for, or bitsandbytes is not installed.
    """
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise UserError("both 8-bit and 4-bit weights were asked for; choose one")
    if find_spec("bitsandbytes") is None:
        raise UserError("8-bit and 4-bit weights need bitsandbytes: pip install 'llava[quant]'")
    return BitsAndBytesConfig(
        load_in_8bit=load_8bit,
        load_in_4bit=load_4bit,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["model.mm_projector", "model.vision_tower", "lm_head"],
    )


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
    if (folder / "mm_projector.bin").is_file():
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
    is_full = kind is CheckpointKind.FULL
    source = folder if is_full else _base_folder(folder, kind, model_base)
    if is_full and model_base is not None:
        logger.warning("%s is a whole model; --model-base %s is not used", model_path, model_base)
    tokenizer = load_tokenizer(source)
    model = load_language_model(source, config, placement, needs_projector=is_full)
    if kind is CheckpointKind.PROJECTOR:
        load_projector(model.get_model().mm_projector, folder / "mm_projector.bin")
    if kind is CheckpointKind.LORA:
        model = _apply_lora(model, folder)
    _add_image_tokens(model, tokenizer)
    model.tokenizer = tokenizer
    tower = model.get_vision_tower()
    if tower is not None:
        device = model.get_input_embeddings().weight.device
        tower.load_model(beside=folder, device=device, dtype=placement.dtype)
        if getattr(config, "unfreeze_mm_vision_tower", False):
            _load_trained_tower(model, folder)
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
    config = LlavaConfig.from_dict(values)
    if vision_tower is not None:
        config.mm_vision_tower = vision_tower
    if token_reduction is not None:
        config.mm_vision_token_reduce_func = token_reduction
    if getattr(config, "mm_vision_tower", None) is None and token_reduction not in (None, "none"):
        raise UserError(f"token reduction {token_reduction!r} needs a vision tower, and {folder} has none")
    return config


def _base_folder(folder: Path, kind: CheckpointKind, model_base: str | None) -> Path:
    """Find the language model that a projector or an adapter goes with."""
    if model_base is None and kind is CheckpointKind.LORA:
        model_base = read_config(folder, "adapter_config.json").get("base_model_name_or_path")
    if not model_base:
        held = "a LoRA adapter" if kind is CheckpointKind.LORA else "a projector"
        raise UserError(
            f"{folder} holds only {held}: name the language model it was trained on with --model-base"
        )
    return resolve_folder(model_base, beside=folder)


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


def load_language_model(
    source: Path, config: LlavaConfig, placement: Placement, needs_projector: bool = True
) -> LlavaLlamaForCausalLM:
    """Load the weights of a folder into a LLaVA model.

    Args:
        source: Folder of a whole LLaVA or language model.
        config: Of the model to build; it has a projector if ``mm_vision_tower`` is set.
        placement: Where and in which form.
        needs_projector: Whether the folder must hold the projector; a base model does not.

    Raises:
        UserError: If weights are damaged, missing or of another shape.
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
    except (UnpicklingError, SafetensorError) as error:
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
    missing = sorted(name for name in report["missing_keys"] if needs_projector or not _is_projector(name))
    if missing:
        raise UserError(f"{source} lacks {len(missing)} weights of the model, the first is {missing[0]}")
    return model


def _is_projector(name: str) -> bool:
    """Tell whether a weight belongs to what stage 1 trains beside a language model."""
    return "mm_projector." in name or name.endswith("image_newline")


def _apply_lora(model: LlavaLlamaForCausalLM, folder: Path) -> LlavaLlamaForCausalLM:
    """Load what was trained beside the adapter, then merge the adapter into the weights.

    Raises:
        UserError: If peft is not installed or the files do not fit.
    """
    if find_spec("peft") is None:
        raise UserError("LoRA checkpoints need peft: pip install 'llava[train]'")
    from peft import PeftModel

    trained = read_tensors(folder / "non_lora_trainables.bin")
    trained = {name.removeprefix("base_model."): tensor for name, tensor in trained.items()}
    if any(name.startswith("model.model.") for name in trained):
        trained = {name.removeprefix("model."): tensor for name, tensor in trained.items()}
    # A published TRIM run also stored its frozen CLIP here (facts B5); CLIP comes from its own folder.
    trained = {name: tensor for name, tensor in trained.items() if "vision_tower." not in name}
    adapter = next(path for path in map(folder.joinpath, ADAPTER_FILES) if path.is_file())
    if any("vision_tower." in name for name, _ in iterate_file(adapter)):
        raise UserError(
            f"{folder} adapts the vision tower; only adapters of the language model are supported"
        )
    _match_vocabulary(model, trained)
    unexpected = model.load_state_dict(trained, strict=False).unexpected_keys
    if unexpected:
        raise UserError(
            f"{folder / 'non_lora_trainables.bin'} holds weights of no part of the model: {unexpected[0]}"
        )
    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def _match_vocabulary(model: LlavaLlamaForCausalLM, trained: dict[str, torch.Tensor]) -> None:
    """Resize the embeddings to those that were trained beside an adapter, if they were."""
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in trained and len(trained[name]) != model.config.vocab_size:
            model.resize_token_embeddings(len(trained[name]))


def _add_image_tokens(model: LlavaLlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give tokenizer and embeddings the special tokens that the config of a multimodal model says it uses."""
    config = model.config
    if getattr(config, "mm_vision_tower", None) is None:
        return
    # LLaVA takes an absent key for True.
    if getattr(config, "mm_use_im_patch_token", True):
        tokenizer.add_tokens([DEFAULT_IMAGE_PATCH_TOKEN], special_tokens=True)
    if getattr(config, "mm_use_im_start_end", False):
        tokenizer.add_tokens([DEFAULT_IM_START_TOKEN, DEFAULT_IM_END_TOKEN], special_tokens=True)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))


def _load_trained_tower(model: LlavaLlamaForCausalLM, folder: Path) -> None:
    """Overwrite CLIP's weights by those that a checkpoint trained itself (``unfreeze_mm_vision_tower``)."""
    prefix = "model.vision_tower."
    tower: PreTrainedModel | Any = model.get_vision_tower()
    own = tower.state_dict()
    trained = {name.removeprefix(prefix): tensor for name, tensor in iterate_weights(folder, (prefix,))}
    tower.load_state_dict({name: tensor for name, tensor in trained.items() if name in own}, strict=False)
    tower.forget_texts()
