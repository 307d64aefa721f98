"""LoRA and QLoRA: small matrices learn beside frozen weights, which may be quantized."""

from __future__ import annotations

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


def add_lora(model: nn.Module, training_args: TrainingArguments, base: str) -> Any:
    """Freeze a language model and put an adapter into its linear layers.

    Args:
        model: A language model whose CLIP is not loaded yet: its layers have the same names as Llama's.
        training_args: LLaVA's ``lora_*`` settings.
        base: Name under which the adapter's config will find the model again.

    Returns:
        peft's wrapper around the model.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if training_args.bits < 16:
        # `build_model` sees to gradient checkpointing, for every kind of model alike.
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=training_args.lora_r,
        lora_alpha=training_args.lora_alpha,
        target_modules=linear_layer_names(model),
        lora_dropout=training_args.lora_dropout,
        bias=cast(LoraBias, training_args.lora_bias),
        task_type="CAUSAL_LM",
    )
    # DeepSpeed keeps float32 copies of what learns itself, and ZeRO-3 takes weights of one type only.
    adapted = get_peft_model(model, config, autocast_adapter_dtype=not training_args.deepspeed)
    adapted.active_peft_config.base_model_name_or_path = base
    return adapted
