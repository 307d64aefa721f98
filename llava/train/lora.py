"""LoRA and QLoRA: small matrices learn beside frozen weights, which may be quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import nn

from llava.train.arguments import TrainingArguments

# Not adapted: they learn whole, stay frozen, or are read by nothing but the loss.
LEFT_OUT = ("mm_projector", "vision_tower", "vision_resampler")
HEAD = "lm_head"

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
