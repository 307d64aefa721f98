"""LLaVA's `load_pretrained_model`, the way in for code written for LLaVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessorPil, PreTrainedTokenizerBase

from llava.model.checkpoint_files import resolve_folder
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading import load_checkpoint
from llava.model.placement import choose_placement


def load_pretrained_model(  # noqa: PLR0913, PLR0917 - LLaVA's signature
    model_path: str | Path,
    model_base: str | Path | None,
    model_name: str,
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: Any = "auto",
    device: str = "cuda",
    use_flash_attn: bool = False,
    *,
    torch_dtype: str | torch.dtype | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    vision_tower: str | None = None,
    token_reduction: str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    max_memory: dict[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    low_cpu_mem_usage: bool | None = None,
) -> tuple[PreTrainedTokenizerBase, LlavaLlamaForCausalLM, CLIPImageProcessorPil | None, int]:
    """Load a checkpoint: full, projector-only or LoRA, told apart by its files.

    Args:
        model_path: Folder or hub id.
        model_base: Language model that a projector or an adapter was trained on; None for a full checkpoint.
        model_name: LLaVA's argument; the files say what LLaVA read from the name, so it decides nothing.
        load_8bit: Quantize the language model to 8 bits.
        load_4bit: Quantize the language model to 4 bits.
        device_map: ``auto`` spreads the language model over all accelerators; otherwise accelerate's map.
        device: ``cuda``, ``mps``, ``cpu``. The default is what the machine computes best on where it has no
            CUDA.
        use_flash_attn: Say so if flash attention cannot be used; it is used where it can be anyway.
        torch_dtype: Type of the weights, float32 on a CPU and float16 elsewhere if missing.
        dtype: The same, under transformers' newer name.
        attn_implementation: Name of transformers' attention, instead of the choice made here.
        vision_tower: CLIP folder or hub id instead of the config's ``mm_vision_tower``.
        token_reduction: Setting instead of the config's ``mm_vision_token_reduce_func``.
        revision: Branch, tag or commit of ``model_path`` on the hub.
        cache_dir: Where downloads of ``model_path`` and ``model_base`` are kept; CLIP's go where ``HF_HOME``
            says.
        max_memory: With ``device_map``: the most that goes to each device, such as ``{0: "20GiB"}``.
        offload_folder: With ``device_map``: where weights stay that fit on no device.
        low_cpu_mem_usage: Transformers' argument, which older callers pass; weights are always loaded so.

    Returns:
        Tokenizer, model, image processor (None for a plain language model) and context length in tokens.

    Raises:
        UserError: If something named here is missing or does not fit; the sentence says what.
        TypeError: For any other keyword.
    """
    del model_name, low_cpu_mem_usage
    folder = resolve_folder(model_path, revision=revision, cache_dir=cache_dir)
    if model_base is not None and cache_dir is not None:
        model_base = resolve_folder(model_base, cache_dir=cache_dir)
    placement = choose_placement(
        None if device == "cuda" else device,
        torch_dtype if dtype is None else dtype,
        device_map=device_map if device == "cuda" else None,
        max_memory=max_memory,
        offload_folder=offload_folder,
        load_8bit=load_8bit,
        load_4bit=load_4bit,
        use_flash_attn=use_flash_attn,
        attn_implementation=attn_implementation,
    )
    loaded = load_checkpoint(
        folder, model_base, placement, vision_tower=vision_tower, token_reduction=token_reduction
    )
    return loaded.tokenizer, loaded.model, loaded.image_processor, loaded.context_length
