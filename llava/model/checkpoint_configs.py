"""The settings of a stranger's checkpoint: known keys with values of known kinds, and nothing else.

Libraries act on much of what their config files may say: they import modules, fetch kernels from a hub, and
build layers and labels of any number. So no library reads a checkpoint's JSON files by itself. They are read
here, the keys of the tables below are taken over, and the library's object is made from those; every other
key means nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPVisionConfig,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.activations import ACT2FN

from llava.errors import UserError, shown
from llava.model.checkpoint_files import own_file, read_config
from llava.model.language_model.llava_config import LlavaConfig

SUPPORTED_MODEL_TYPES = ("llava_llama", "llava", "llama")
MAX_PIXELS_PER_SIDE = 4096  # of what a checkpoint may have an image resized to
SIDES = ({"height", "width"}, {"shortest_edge"})  # names that say together how large an image becomes

Kind = tuple[str, Callable[[Any], bool]]
"""What a value has to be, in words, and the test."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and abs(value) < 1e38


def _one_of(*names: str) -> Kind:
    """Make the kind of a value that is one of some names."""
    return f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names


def _is_list_of(kind: Kind, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) <= most and all(map(kind[1], value))


FLAG: Kind = ("true or false", lambda value: isinstance(value, bool))
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
WHOLE: Kind = ("a whole number below 2**31", lambda value: _is_whole(value) and abs(value) < 2**31)
COUNT: Kind = ("a whole number above 0, below 2**31", lambda value: _is_whole(value) and 0 < value < 2**31)
NUMBER: Kind = ("a number", _is_number)
POSITIVE: Kind = ("a number above 0", lambda value: _is_number(value) and value > 0)
FACTOR: Kind = ("a number above 0, up to 10**6", lambda value: _is_number(value) and 0 < value <= 10**6)
EPSILON: Kind = ("a number from 0 to 0.1", lambda value: _is_number(value) and 0 <= value <= 0.1)
SHARE: Kind = ("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)
LENGTH: Kind = ("a number of tokens, 1 or more", lambda value: _is_number(value) and value >= 1)
NUMBERS: Kind = ("a list of numbers", _is_list_of(NUMBER, 4096))
TOKEN_IDS: Kind = (
    "a token id or a list of them",
    lambda value: WHOLE[1](value) or (_is_list_of(WHOLE, 64)(value) and len(value) > 0),
)
POSITIVES: Kind = ("a list of numbers above 0", _is_list_of(POSITIVE, 4096))
COLOR: Kind = ("three numbers", lambda value: NUMBERS[1](value) and len(value) == 3)
SIDES_OF_TEXT = _one_of("left", "right")
ACTIVATION: Kind = ("an activation function's name", lambda value: isinstance(value, str) and value in ACT2FN)
DTYPE: Kind = ("a dtype's name", lambda value: isinstance(value, str) and _dtype_named(value))
SIDE: Kind = (
    f"a number of pixels up to {MAX_PIXELS_PER_SIDE}, or height and width of that size",
    lambda value: _is_side(value) or (isinstance(value, dict) and _are_sides(_sides(value))),
)


def _are_sides(size: dict[str, Any]) -> bool:
    return size.keys() in SIDES and all(map(_is_side, size.values()))


def _sides(size: dict[str, Any]) -> dict[str, Any]:
    return {name: side for name, side in size.items() if side is not None}


def _is_side(value: Any) -> bool:
    return _is_whole(value) and 0 < value <= MAX_PIXELS_PER_SIDE


def are_pinpoints(value: Any) -> bool:
    """Whether a value is a list of resolutions that an image may be resized to, or such a list as text."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value) if len(value) < MAX_PIXELS_PER_SIDE else None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
    return (
        isinstance(value, list | tuple)
        and 0 < len(value) <= 64
        and all(
            isinstance(pair, list | tuple) and len(pair) == 2 and all(map(_is_side, pair)) for pair in value
        )
    )


def _dtype_named(value: str) -> bool:
    return value.removeprefix("torch.") in ("float16", "bfloat16", "float32", "float64")


# Tokens have ids below this, so that a table of them fits in memory.
MAX_TOKENS = 2**22
TOKEN_ID: Kind = (
    f"a token's id, below {MAX_TOKENS}",
    lambda value: _is_whole(value) and 0 <= value < MAX_TOKENS,
)
TOKEN_FIELDS: dict[str, Kind] = {
    **dict.fromkeys(("content", "__type"), TEXT),
    **dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), FLAG),
}
TOKEN: Kind = (
    "a token: its text, or an object with content, lstrip, rstrip, single_word, normalized and special",
    lambda value: (
        (isinstance(value, str) and value != "")
        or (isinstance(value, dict) and bool(value.get("content")) and _has_only(TOKEN_FIELDS, value))
    ),
)
TOKENS: Kind = ("a list of tokens", _is_list_of(TOKEN, 4096))


def _has_only(accepted: Mapping[str, Kind], values: dict[str, Any]) -> bool:
    """Tell whether an object has no other keys than the accepted ones, and values of their kinds."""
    return all(key in accepted and accepted[key][1](one) for key, one in values.items())


def _is_token_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.isdecimal() and len(key) < 8 and TOKEN_ID[1](int(key)) and TOKEN[1](token)
        for key, token in value.items()
    )


def _each(names: str, kind: Kind) -> dict[str, Kind]:
    """Make a table of names, which are separated by spaces, that are all of one kind."""
    return dict.fromkeys(names.split(), kind)


ROPE_KEYS: dict[str, Kind] = {
    **_each("rope_type type", _one_of("default", "linear", "dynamic", "yarn", "longrope", "llama3")),
    **_each("short_factor long_factor", POSITIVES),
    "factor": ("a number from 1 to 10**6", lambda value: _is_number(value) and 1 <= value <= 10**6),
    "attention_factor": (
        "a number from 0.01 to 100",
        lambda value: _is_number(value) and 0.01 <= value <= 100,
    ),
    **_each("rope_theta beta_fast beta_slow low_freq_factor high_freq_factor", POSITIVE),
    **_each("mscale mscale_all_dim", NUMBER),
    "partial_rotary_factor": ("1: Llama rotates all of a head", lambda value: value == 1),
    "original_max_position_embeddings": COUNT,
    **_each("truncate finetuned", FLAG),
}
ROPE: Kind = ("an object with settings of rotary positions", lambda value: isinstance(value, dict))
ROPE_NEEDS = {
    **dict.fromkeys(("linear", "dynamic", "yarn"), ("factor",)),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}

LANGUAGE_MODEL_KEYS: dict[str, Kind] = {
    **_each("vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads", COUNT),
    **_each("num_key_value_heads head_dim max_position_embeddings pretraining_tp", COUNT),
    **_each("use_cache tie_word_embeddings attention_bias mlp_bias", FLAG),
    **_each("initializer_range attention_dropout", SHARE),
    "rms_norm_eps": EPSILON,
    "rope_theta": POSITIVE,
    **_each("pad_token_id bos_token_id eos_token_id", TOKEN_IDS),
    **_each("rope_scaling rope_parameters", ROPE),
    **_each("dtype torch_dtype", DTYPE),
    "hidden_act": ACTIVATION,
}
LLAVA_KEYS: dict[str, Kind] = {
    **_each("mm_vision_tower vision_tower mm_vision_select_feature mm_vision_token_reduce_func", TEXT),
    **_each("mm_projector_type conv_template", TEXT),
    "mm_patch_merge_type": _one_of("flat", "spatial", "spatial_unpad"),
    "image_aspect_ratio": (
        "pad, anyres, or square or another word for CLIP's resize and crop",
        lambda value: isinstance(value, str) and (value == "anyres" or not value.startswith("anyres")),
    ),
    "tokenizer_padding_side": SIDES_OF_TEXT,
    "bnb_4bit_quant_type": _one_of("nf4", "fp4"),
    **_each("mm_use_im_start_end mm_use_im_patch_token tune_mm_mlp_adapter freeze_mm_mlp_adapter", FLAG),
    **_each("unfreeze_mm_vision_tower use_mm_proj bnb_4bit_use_double_quant s2", FLAG),
    **_each("mm_hidden_size max_sequence_length", COUNT),
    "tokenizer_model_max_length": LENGTH,  # transformers writes 10**30 for no limit
    "mm_vision_select_layer": WHOLE,
    "mm_projector_lr": NUMBER,
    "image_grid_pinpoints": (
        f"a list of at most 64 pairs of pixels, width and height up to {MAX_PIXELS_PER_SIDE}",
        are_pinpoints,
    ),
}
GENERATION_KEYS: dict[str, Kind] = {
    **_each("pad_token_id bos_token_id eos_token_id", TOKEN_IDS),
    **_each("max_length max_new_tokens min_length min_new_tokens top_k no_repeat_ngram_size", WHOLE),
    **_each("temperature top_p min_p typical_p repetition_penalty length_penalty", NUMBER),
    **_each("do_sample use_cache", FLAG),
    "early_stopping": ('true, false or "never"', lambda value: isinstance(value, bool) or value == "never"),
}
_TRANSFORMER_KEYS: dict[str, Kind] = {
    **_each("hidden_size intermediate_size num_hidden_layers num_attention_heads projection_dim", COUNT),
    "layer_norm_eps": EPSILON,
    "attention_dropout": SHARE,
    "hidden_act": ACTIVATION,
}
CLIP_TEXT_KEYS: dict[str, Kind] = {
    **_TRANSFORMER_KEYS,
    **_each("vocab_size max_position_embeddings", COUNT),
    **_each("pad_token_id bos_token_id eos_token_id", TOKEN_IDS),
}
CLIP_VISION_KEYS: dict[str, Kind] = {
    **_TRANSFORMER_KEYS,
    **_each("num_channels image_size patch_size", COUNT),
}
CLIP_KEYS: dict[str, Kind] = {
    "projection_dim": COUNT,
    "logit_scale_init_value": NUMBER,
}
TOKENIZER_KEYS: dict[str, Kind] = {
    **_each("bos_token eos_token unk_token pad_token cls_token sep_token mask_token", TOKEN),
    "additional_special_tokens": TOKENS,
    "extra_special_tokens": (
        "a list of tokens, or an object with names and tokens",
        lambda value: TOKENS[1](value) or (isinstance(value, dict) and all(map(TOKEN[1], value.values()))),
    ),
    **_each("add_bos_token add_eos_token add_prefix_space clean_up_tokenization_spaces legacy", FLAG),
    **_each("split_special_tokens spaces_between_special_tokens do_lower_case", FLAG),
    **_each("padding_side truncation_side", SIDES_OF_TEXT),
    "added_tokens_decoder": ("an object with a token for each id", _is_token_table),
    "model_max_length": LENGTH,
    "tokenizer_class": TEXT,  # which of the known ones; no other is looked for
}
HALF_KEYS = {"text": CLIP_TEXT_KEYS, "vision": CLIP_VISION_KEYS}
# Old configs say the same twice, and what ends in _dict wins.
HALVES = _each(
    "text_config text_config_dict vision_config vision_config_dict",
    ("an object", lambda value: isinstance(value, dict)),
)
IMAGE_PROCESSOR_KEYS: dict[str, Kind] = {
    **_each("do_resize do_center_crop do_rescale do_normalize do_convert_rgb", FLAG),
    **_each("size crop_size", SIDE),
    "image_mean": COLOR,
    "image_std": ("three numbers above 0", lambda value: POSITIVES[1](value) and len(value) == 3),
    "rescale_factor": (
        "a number from 0.001 to 0.01, such as 1/255",
        lambda value: _is_number(value) and 0.001 <= value <= 0.01,
    ),
    "resample": ("a whole number from 0 to 5", lambda value: _is_whole(value) and 0 <= value <= 5),
}


def pick(values: Mapping[str, Any], accepted: Mapping[str, Kind], path: Path, what: str) -> dict[str, Any]:
    """Take over the accepted keys of a config and leave the others.

    Args:
        values: The config.
        accepted: What each accepted key has to be. Null means the default, but for texts and tokens, of which
            it is one itself.
        path: The file, for messages.
        what: What the file should be, for messages.

    Raises:
        UserError: If a value is of another kind.
    """
    for key in values.keys() & accepted.keys():
        words, fits = accepted[key]
        if values[key] is not None and not fits(values[key]):
            raise UserError(f"{path} is not a valid {what}: {key} is {shown(values[key])}; accepted: {words}")
    return {
        key: value
        for key, value in values.items()
        if key in accepted and (value is not None or accepted[key] in (TEXT, TOKEN, TOKEN_IDS))
    }


def _build(
    config_class: type[PreTrainedConfig], values: dict[str, Any], accepted: Mapping[str, Kind], path: Path
) -> Any:
    """Make transformers' config of the accepted keys.

    Raises:
        UserError: If a value is refused, here or by transformers.
    """
    what = "CLIP config" if config_class.model_type.startswith("clip") else "Llama config"
    try:
        return config_class.from_dict(pick(values, accepted, path, what))
    except UserError:
        raise
    except (StrictDataclassError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = str(error).strip().splitlines()[-1].strip()  # behind the names of the library's own checks
        raise UserError(f"{path} is not a valid {what}: {reason}") from None


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
    values, path = read_config(folder), folder / "config.json"
    # transformers has a Llava of its own under the name "llava", so the type is read here and not
    # by it.
    model_type = values.get("model_type", "llama")
    if model_type not in SUPPORTED_MODEL_TYPES:
        raise UserError(
            f"{folder} holds a model of type {shown(model_type)}; supported: "
            f"{', '.join(SUPPORTED_MODEL_TYPES)}"
        )
    if "text_config" in values:
        raise UserError(
            f"{folder} is in transformers' own LLaVA format (text_config in config.json); use the original "
            "checkpoint, for example liuhaotian/llava-v1.5-7b"
        )
    if values.get("quantization_config"):
        raise UserError(
            f"{folder} holds weights that were quantized before they were stored (quantization_config in "
            "config.json); use the original checkpoint, with --load-4bit or --load-8bit if need be"
        )
    values = {**values, **_positions(values, path)}
    config = _build(LlavaConfig, values, LANGUAGE_MODEL_KEYS | LLAVA_KEYS, path)
    _check_heads(config, path)
    if vision_tower is not None:
        config.mm_vision_tower = vision_tower
    if token_reduction is not None:
        config.mm_vision_token_reduce_func = token_reduction
    _check_vision_keys(config, folder)
    return config


def _positions(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Take over the settings of rotary positions, all of which change what the model computes.

    Raises:
        UserError: If one is unknown, or of another kind.
    """
    found = {}
    for name in ("rope_scaling", "rope_parameters"):
        given = values.get(name)
        if isinstance(given, dict):
            unknown = sorted(given.keys() - ROPE_KEYS.keys())
            if unknown:
                raise UserError(
                    f"{path} is not a valid Llama config: {name} has the key {shown(unknown[0])}; accepted: "
                    f"{', '.join(ROPE_KEYS)}"
                )
            found[name] = pick(given, ROPE_KEYS, path, f"Llama config ({name})")
    return found


def _check_heads(config: LlavaConfig, path: Path) -> None:
    """Refuse attention heads, and rotary positions in them, that do not go together.

    Raises:
        UserError: If they do not.
    """
    rope, width, wrong = config.rope_parameters, config.head_dim, None
    missing = [key for key in ROPE_NEEDS.get(rope["rope_type"], ()) if key not in rope]
    if config.num_attention_heads % config.num_key_value_heads:
        wrong = (
            f"{config.num_attention_heads} attention heads cannot share {config.num_key_value_heads} of keys "
            "and values"
        )
    elif width % 2:
        wrong = f"head_dim is {width}, and rotary positions need an even one"
    elif missing:
        wrong = f"rope_type {rope['rope_type']} needs {', '.join(missing)}"
    elif rope["rope_type"] == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        wrong = f"low_freq_factor {rope['low_freq_factor']} is not below high_freq_factor"
    elif rope["rope_type"] == "longrope":
        lengths = {len(rope[name]) for name in ("short_factor", "long_factor")}
        if lengths != {width // 2}:
            wrong = f"short_factor and long_factor need {width // 2} numbers each, half of head_dim"
    if wrong is not None:
        raise UserError(f"{path} is not a valid Llama config: {wrong}")


def _check_vision_keys(config: LlavaConfig, folder: Path) -> None:
    """Refuse a config that names a vision tower without what goes with it, or the reverse."""
    if getattr(config, "mm_vision_tower", None):
        for key in ("mm_vision_select_layer", "mm_hidden_size"):
            if not isinstance(getattr(config, key, None), int):
                raise UserError(
                    f"{folder / 'config.json'} names a vision tower and lacks a whole number {key}"
                )
        if getattr(config, "image_aspect_ratio", None) == "anyres" and not hasattr(
            config, "image_grid_pinpoints"
        ):
            raise UserError(
                f"{folder / 'config.json'} has image_aspect_ratio anyres and lacks image_grid_pinpoints, the "
                "resolutions that go with it"
            )
        return
    reduction = getattr(config, "mm_vision_token_reduce_func", None)
    if reduction not in (None, "none"):
        raise UserError(f"token reduction {reduction!r} needs a vision tower, and {folder} has none")


def read_generation_config(folder: Path) -> GenerationConfig:
    """Read how a language model generates by default, from generation_config.json or else from config.json.

    Raises:
        UserError: If a value is of a kind that it cannot be.
    """
    name = "generation_config.json" if own_file(folder, "generation_config.json") else "config.json"
    values = pick(read_config(folder, name), GENERATION_KEYS, folder / name, "generation config")
    try:
        return GenerationConfig(**_given(values))
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / name} is not a valid generation config: {error}") from None


def read_clip_configs(folder: Path) -> tuple[CLIPVisionConfig, CLIPTextConfig | None]:
    """Read the configs of CLIP's vision and text halves; None for a text encoder that the folder lacks.

    Raises:
        UserError: If the folder holds something else than CLIP.
    """
    values, path = read_config(folder), folder / "config.json"
    model_type = values.get("model_type")
    if model_type == "clip_vision_model":
        return _build(CLIPVisionConfig, values, CLIP_VISION_KEYS, path), None
    if model_type != "clip":
        raise UserError(
            f"{folder} holds a model of type {shown(model_type)}; the vision tower is a CLIP model ('clip')"
        )
    config = _build(CLIPConfig, {**values, **_halves(values, path)}, CLIP_KEYS | HALVES, path)
    if config.projection_dim:
        config.vision_config.projection_dim = config.text_config.projection_dim = config.projection_dim
    return config.vision_config, config.text_config


def _halves(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Take over the accepted keys of the configs of CLIP's halves."""
    return {
        key: _given(pick(values[key], HALF_KEYS[key.split("_")[0]], path, "CLIP config"))
        for key in HALVES
        if isinstance(values.get(key), dict)
    }


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is null."""
    return {key: value for key, value in values.items() if value is not None}


def read_image_processor(folder: Path) -> CLIPImageProcessorPil:
    """Read how CLIP's images are prepared.

    Raises:
        MissingFileError: If there is neither preprocessor_config.json nor processor_config.json, which
            transformers 5 may write instead.
        UserError: If a value is of a kind that it cannot be.
    """
    name, values = "preprocessor_config.json", None
    if own_file(folder, name) is None and own_file(folder, "processor_config.json"):
        name = "processor_config.json"
        values = read_config(folder, name).get("image_processor")
    values = values if isinstance(values, dict) else read_config(folder, name)
    picked = pick(values, IMAGE_PROCESSOR_KEYS, folder / name, "CLIP image processor")
    for key in ("size", "crop_size"):
        if isinstance(picked.get(key), dict):
            picked[key] = _sides(picked[key])
    return CLIPImageProcessorPil(**picked)
