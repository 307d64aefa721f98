"""LoRA adapters beside a base: the layers of one are read from its weights, and its config is not trusted."""

from __future__ import annotations

import logging
import re
import warnings
from copy import copy, deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import UserError, shown
from llava.internals import build_model
from llava.model.checkpoint_configs import COUNT, FACTOR, FLAG, SHARE, TEXT, Kind, pick
from llava.model.checkpoint_files import (
    ADAPTER_FILES,
    dtypes_of,
    is_same_model,
    open_file,
    own_file,
    read_config,
    read_shapes,
    shapes_of,
)
from llava.model.checkpoint_sizes import build_without_weights, refuse_other_shapes, refuse_other_types
from llava.model.language_model.llava_config import LlavaConfig
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
LORA = "lora_"
WRAPPER = "base_model.model."  # what peft puts in front of the names of the model's modules

_NAME = re.compile(r"\^?[\w.]+")  # peft reads names as regular expressions; a stranger's may take for ever


def _is_pattern(kind: Kind) -> Kind:
    return (
        f"an object with names of layers, and {kind[0]} for each",
        lambda value: (
            isinstance(value, dict)
            and all(_NAME.fullmatch(name) and kind[1](one) for name, one in value.items())
        ),
    )


# What is handed on to peft. Which layers have an adapter is read from the weights.
ADAPTER_KEYS: dict[str, Kind] = {
    "base_model_name_or_path": TEXT,
    "peft_type": ("LORA", lambda value: value == "LORA"),
    "task_type": ("CAUSAL_LM", lambda value: value == "CAUSAL_LM"),
    "r": COUNT,
    "lora_alpha": FACTOR,
    "lora_dropout": SHARE,
    "rank_pattern": _is_pattern(COUNT),
    "alpha_pattern": _is_pattern(FACTOR),
    **dict.fromkeys(("fan_in_fan_out", "use_rslora", "use_dora", "lora_bias"), FLAG),
    "bias": ("none, all or lora_only", lambda value: value in ("none", "all", "lora_only")),
    "modules_to_save": (
        "a list of names of layers",
        lambda value: (
            isinstance(value, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in value)
        ),
    ),
    # The others change the base's weights too.
    "init_lora_weights": (
        'true, false or "gaussian"',
        lambda value: isinstance(value, bool) or value == "gaussian",
    ),
}
# What says nothing about an adapter that has been trained.
IRRELEVANT_KEYS = {
    *("auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules"),
    *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_ga_config"),
    *("peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules"),
}


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read what an adapter's config says and this loader believes.

    Raises:
        MissingFileError: If there is no adapter_config.json.
        UserError: If it asks for anything that is not supported.
    """
    path, values = folder / ADAPTER_CONFIG, read_config(folder, ADAPTER_CONFIG)
    defaults = default_adapter_config()
    for key in sorted(values.keys() - ADAPTER_KEYS.keys() - IRRELEVANT_KEYS):
        if values[key] and values[key] != defaults.get(key):
            raise UserError(
                f"{path} sets {key} to {shown(values[key])}, which is not supported; accepted are plain "
                f"LoRA adapters with {', '.join(ADAPTER_KEYS)}"
            )
    return pick(values, ADAPTER_KEYS, path, "config of a LoRA adapter")


def find_other_base(folder: Path, base: str | Path) -> str | None:
    """Return the base that an adapter's config names, if it seems to be another one than ``base``.

    Args:
        folder: The adapter's.
        base: Folder or hub id.

    Raises:
        UserError: If the config cannot be read.
    """
    values = read_config(folder, ADAPTER_CONFIG) if own_file(folder, ADAPTER_CONFIG) else {}
    named = values.get("base_model_name_or_path")
    is_other = isinstance(named, str) and named and not is_same_model(named, base, beside=folder)
    return named if is_other else None


def warn_of_other_base(folder: Path, base: str | Path) -> None:
    """Warn if an adapter is used with another base than its config names; see `find_other_base`."""
    named = find_other_base(folder, base)
    if named is not None:
        logger.warning(
            "the adapter %s was trained on %s, and is used with %s: with another it is noise",
            folder,
            named,
            base,
        )


def default_adapter_config() -> dict[str, Any]:
    """Return what a LoRA config says if nothing was chosen.

    Raises:
        UserError: If peft is not installed.
    """
    if find_spec("peft") is None:
        raise UserError("LoRA checkpoints need peft: pip install 'llava[train]'")
    from peft import LoraConfig

    return LoraConfig().to_dict()


def apply_adapter(model: LlavaLlamaForCausalLM, folder: Path) -> LlavaLlamaForCausalLM:
    """Load an adapter, and merge it where the weights are not quantized.

    Args:
        model: The base, changed in place.
        folder: The adapter's.

    Returns:
        The model.

    Raises:
        UserError: If peft is not installed or the adapter does not fit.
    """
    config, file = read_adapter_config(folder), adapter_file(folder)
    targets = _adapted_layers(file, model, config)

    from peft import LoraConfig, PeftModel

    given = {key: value for key, value in config.items() if value is not None}
    lora = LoraConfig(**{**given, "target_modules": targets, "task_type": "CAUSAL_LM"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        _check_weights(file, model.config, lora)
        # With a config of ours, peft reads none by itself.
        adapted = PeftModel.from_pretrained(model, str(folder), config=lora)  # changes the model itself
        # Quantized weights would be rounded once more: there the adapter stays beside them, as it was
        # trained.
        return model if getattr(model, "is_quantized", False) else adapted.merge_and_unload()


def _check_weights(file: Path, config: LlavaConfig, lora: LoraConfig) -> None:
    """Refuse an adapter that does not fit its base, before anything of its size is built.

    Args:
        file: The adapter's weights.
        config: Of the base.
        lora: What the adapter changes of it.

    Raises:
        UserError: See `check_adapter`.
    """
    from peft import get_peft_model

    nameless = copy(lora)
    nameless.base_model_name_or_path = None  # peft would warn that the model has another name
    adapted = build_without_weights(
        lambda: get_peft_model(build_model(LlavaLlamaForCausalLM, deepcopy(config), "eager"), nameless),
        file.parent,
    )
    check_adapter(file, adapted)


def check_adapter(file: Path, adapted: PeftModel) -> None:
    """Refuse an adapter that is not, as a whole, one of a model; peft would leave out what does not fit.

    Args:
        file: The adapter's weights.
        adapted: The model, with an adapter in place.

    Raises:
        UserError: If weights are missing, of another shape or of another type, or belong to nothing.
    """
    from peft import get_peft_model_state_dict

    stored = open_file(file)
    # The library would ask a hub whether the base's embeddings belong to the adapter.
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lacking = own.keys() - stored.keys()
    if lacking:
        raise UserError(f"{file} lacks {len(lacking)} weights of the adapter, the first is {min(lacking)}")
    # Besides, an adapter may bring weights of the base whole, such as embeddings.
    whole = {name: weight for name, weight in adapted.state_dict().items() if LORA not in name}
    unmatched = refuse_other_shapes(
        whole | own, shapes_of(stored), f"the adapter {file} does not fit its base"
    )
    if unmatched:
        raise UserError(
            f"{file} holds {len(unmatched)} of {len(stored)} weights for which its base has no place, the "
            f"first is {min(unmatched)}"
        )
    refuse_other_types(dtypes_of(stored), stored, file)


def adapter_file(folder: Path) -> Path:
    """Return the weights of an adapter, of which there are some."""
    return next(path for path in (own_file(folder, name) for name in ADAPTER_FILES) if path is not None)


def refuse_adapted_embeddings(folder: Path) -> None:
    """Refuse an adapter without which prompts cannot be embedded.

    Raises:
        UserError: If it changes the embedding table.
    """
    file = adapter_file(folder)
    if any("embed_tokens" in name for name in read_shapes(file)):
        raise UserError(f"{file} adapts the embedding table; merge it first (scripts/merge_lora_weights.py)")


def _adapted_layers(file: Path, model: LlavaLlamaForCausalLM, config: dict[str, Any]) -> list[str]:
    """Return the full names of the layers for which an adapter has weights.

    Raises:
        UserError: If there are none, the model lacks them, their rank is not that of the config, or the
            config has some of them replaced too.
    """
    shapes = read_shapes(file)
    if any("vision_tower." in name for name in shapes):
        raise UserError(
            f"{file.parent} adapts the vision tower; only adapters of the language model are supported"
        )
    first = ".lora_A.weight"
    ranks = {
        name.removeprefix(WRAPPER).removesuffix(first): shape[0]
        for name, shape in shapes.items()
        if name.endswith(first) and shape
    }
    unknown = sorted(ranks.keys() - dict(model.named_modules()).keys())
    if not ranks or unknown:
        raise UserError(
            f"{file} holds no adapter of this model's layers{f': {unknown[0]}' if unknown else ''}"
        )
    for layer, rank in ranks.items():
        expected = _expected_rank(layer, config)
        if rank != expected:
            raise UserError(f"{file} has rank {rank} for {layer}, and {ADAPTER_CONFIG} says {expected}")
    for name in config.get("modules_to_save") or ():
        meant = {module for module, _ in model.named_modules() if module.endswith(name)}
        if not meant or meant & ranks.keys():
            raise UserError(
                f"{file.parent / ADAPTER_CONFIG} has {shown(name)} in modules_to_save; accepted: layers of "
                "the base that have no adapter"
            )
    return sorted(ranks)


def _expected_rank(layer: str, config: dict[str, Any]) -> int:
    """Return the rank that a config gives to a layer: a name in a pattern is the end of the layer's name."""
    for name, rank in (config.get("rank_pattern") or {}).items():
        if layer == name.removeprefix("^") or (name[0] != "^" and layer.endswith(f".{name}")):
            return rank
    return config.get("r") or default_adapter_config()["r"]
