"""A LLaVA with random weights at the proportions of real ones, for measuring without a download."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from llava.assistant import Assistant, bundled_checkpoint
from llava.bench.model_sizes import VIT_L_14_336
from llava.bench.random_clip import write_random_clip
from llava.conversation import find_template
from llava.engine.transformers_engine import TransformersEngine
from llava.internals import build_model
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava.model.loading import LoadedModel
from llava.model.placement import choose_attention
from llava.model.vision_settings import VisionSettings
from llava.tokenizer import load_tokenizer


def random_language_model(
    sizes: dict[str, int], device: torch.device, dtype: torch.dtype
) -> LlavaLlamaForCausalLM:
    """Make a LLaVA without vision, on the device and in the dtype it is to have, with the fastest attention.

    Args:
        sizes: Arguments of `LlavaConfig`, such as a value of `LANGUAGE_MODELS`.
        device: Where.
        dtype: Of its weights.
    """
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return build_model(LlavaLlamaForCausalLM, _config(sizes), choose_attention(device, dtype))
    finally:
        torch.set_default_dtype(usual)


def _config(sizes: dict[str, int]) -> LlavaConfig:
    return LlavaConfig(**{"vocab_size": 32000, "max_position_embeddings": 4096, **sizes})


def language_model_bytes(sizes: dict[str, int], dtype: torch.dtype) -> int:
    """Return the bytes of a language model's weights, without making any."""
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(_config(sizes))
    return dtype.itemsize * sum(weight.numel() for weight in model.parameters())


def add_random_vision_tower(model: LlavaLlamaForCausalLM, clip: dict = VIT_L_14_336) -> None:
    """Give a model CLIP, with random weights, and a projector, as training gives them to it.

    Args:
        model: From `random_language_model`; any reduction can be set afterwards.
        clip: Arguments of `CLIPConfig`.
    """
    with tempfile.TemporaryDirectory() as folder:
        tower = str(write_random_clip(Path(folder), clip, device=model.device))
        # With the reduction the text encoder is loaded.
        model.get_model().add_vision(VisionSettings(tower, token_reduction="TRIM:-1"))


def random_assistant(  # noqa: PLR0913 - each says what is random
    sizes: dict[str, int],
    clip: dict = VIT_L_14_336,
    *,
    reduction: str = "none",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_rows: int = 16,
    seed: int = 0,
) -> Assistant:
    """Make an assistant with random weights, which reads with the bundled model's tokenizer.

    Args:
        sizes: Of the language model, such as a value of `LANGUAGE_MODELS`.
        clip: Of CLIP.
        reduction: As ``mm_vision_token_reduce_func`` has it.
        device: Where its weights are drawn and stay.
        dtype: Of all of them.
        max_rows: The most requests that its engine runs at once.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    model = random_language_model(sizes, torch.device(device), dtype)
    add_random_vision_tower(model, clip)
    model.config.image_aspect_ratio = "pad"  # as that of LLaVA-1.5
    model.set_token_reduction(reduction)
    model.tokenizer = tokenizer = load_tokenizer(bundled_checkpoint())
    # It never says what the tokenizer cannot spell, and ends no answer: the logit of these is always 0, which
    # is not the highest of hundreds.
    model.lm_head.weight.data[len(tokenizer) :] = 0
    model.lm_head.weight.data[tokenizer.eos_token_id] = 0
    tower = model.get_vision_tower()
    assert tower is not None
    loaded = LoadedModel(tokenizer, model.eval().requires_grad_(False), tower.image_processor, 2048)
    engine = TransformersEngine(model, tokenizer, max_rows=max_rows)
    return Assistant(loaded, find_template("vicuna_v1"), engine)
