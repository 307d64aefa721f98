"""A LLaVA with random weights at the proportions of real ones, for measuring without a download."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from llava.bench.random_clip import VIT_L_14_336, write_random_clip
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.vision_settings import VisionSettings

# Llama's proportions. 1b is what the published code's speed was measured with (1.25 billion parameters), the
# others are those of Vicuna.
LANGUAGE_MODELS = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}


def random_language_model(
    sizes: dict[str, int], device: torch.device, dtype: torch.dtype
) -> LlavaLlamaForCausalLM:
    """Make a LLaVA without vision, on the device and in the dtype it is to have.

    Args:
        sizes: Arguments of `LlavaConfig`, such as a value of `LANGUAGE_MODELS`.
        device: Where.
        dtype: Of its weights.
    """
    config = LlavaConfig(**{"vocab_size": 32000, "max_position_embeddings": 4096, **sizes})
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlavaLlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(usual)


def add_random_vision_tower(model: LlavaLlamaForCausalLM, clip: dict = VIT_L_14_336) -> None:
    """Give a model CLIP, with random weights, and a projector, as training gives them to it.

    Args:
        model: From `random_language_model`; any reduction can be set afterwards.
        clip: Arguments of `CLIPConfig`.
    """
    with tempfile.TemporaryDirectory() as folder:
        tower = str(write_random_clip(Path(folder), clip))
        # With the reduction the text encoder is loaded.
        model.get_model().add_vision(VisionSettings(tower, token_reduction="TRIM:-1"))
