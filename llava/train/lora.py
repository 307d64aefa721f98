"""LoRA and QLoRA: small matrices learn beside frozen weights, which may be quantized."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from torch import nn

from llava.model.adapter import ADAPTER_CONFIG, default_adapter_config
from llava.model.checkpoint_files import read_config
from llava.train.arguments import TrainingArguments

# Not adapted: they learn whole, stay frozen, or are read by nothing but the loss.
LEFT_OUT = ("mm_projector", "vision_tower", "vision_resampler")
HEAD = "lm_head"
# What peft 0.8.2 knows of an adapter's config. It refuses any other key, and LLaVA's users have it.
OLD_CONFIG_KEYS = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha"),
    *("lora_dropout", "megatron_config", "megatron_core", "modules_to_save", "peft_type", "r"),
    *("rank_pattern", "revision", "target_modules", "task_type", "use_rslora"),
}

LoraBias = Literal["none", "all", "lora_only"]


def linear_layer_names(model: nn.Module) -> list[str]:
    """Return the last parts of the names of all linear layers that LoRA adapts, such as ``q_proj``."""
    # Quantized layers are subclasses of nn.Linear.
    names = {
        name.rsplit(".", 1)[-1]
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and not any(part in name for part in LEFT_OUT)
    }
    return sorted(names - {HEAD})


find_all_linear_names = linear_layer_names  # LLaVA's name


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What an adapter is like.

    Attributes:
        rank: Of its matrices.
        alpha: Its scale, divided by the rank.
        dropout: In front of it.
        bias: Biases trained beside it.
        is_quantized: Whether the base's weights are.
        keeps_dtype: Whether the adapter has the base's dtype, not float32: DeepSpeed keeps float32 copies of
            what is trained itself, and ZeRO-3 takes weights of one dtype only.
    """

    rank: int
    alpha: int
    dropout: float = 0.05
    bias: LoraBias = "none"
    is_quantized: bool = False
    keeps_dtype: bool = False

    @classmethod
    def of(cls, training_args: TrainingArguments) -> LoraSettings:
        """Read LLaVA's ``lora_*`` arguments."""
        return cls(
            rank=training_args.lora_r,
            alpha=training_args.lora_alpha,
            dropout=training_args.lora_dropout,
            bias=cast(LoraBias, training_args.lora_bias),
            is_quantized=training_args.bits < 16,
            keeps_dtype=bool(training_args.deepspeed),
        )


def add_lora(model: nn.Module, settings: LoraSettings, base: str) -> Any:
    """Freeze a language model and put an adapter into its linear layers.

    Args:
        model: A language model whose CLIP is not loaded yet: its layers have the same names as Llama's.
        settings: Of the adapter.
        base: Name under which the adapter's config will find the model again.

    Returns:
        peft's wrapper around the model.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if settings.is_quantized:
        # `build_model` sees to gradient checkpointing, for every kind of model alike.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=linear_layer_names(model),
        lora_dropout=settings.dropout,
        bias=settings.bias,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config, autocast_adapter_dtype=not settings.keeps_dtype)
    adapted.active_peft_config.base_model_name_or_path = base
    return adapted


def drop_new_keys(folder: Path) -> None:
    """Rewrite the config of an adapter that peft saved, so that peft from 0.8.2 on reads it as the same.

    Args:
        folder: The adapter's. Newer keys stay where their values are not the defaults.
    """
    values, defaults = read_config(folder, ADAPTER_CONFIG), default_adapter_config()
    kept = {
        key: value for key, value in values.items() if key in OLD_CONFIG_KEYS or value != defaults.get(key)
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(kept, indent=2, sort_keys=True), encoding="utf-8")
