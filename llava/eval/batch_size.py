"""How many questions are answered together, by the memory that is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.model.prompt_model import LlavaPromptModel

LARGEST = 32  # beyond it a batch gains little and delays what is written
SHARE = 0.5  # of the free memory; the rest is for what the estimate leaves out
MOST_CROPS = 5  # of an image in tiles, with the resolutions of LLaVA-1.6
TEXT_TOKENS = 512  # of a long question with its template


def choose_batch_size(assistant: Assistant, generation: Generation) -> int:
    """Return how many questions fit into half of the free memory, 1 to 32.

    An engine in other processes has memory of its own.

    Args:
        assistant: Answers them.
        generation: How long the answers may be.
    """
    if isinstance(assistant.model, LlavaPromptModel):
        return LARGEST
    fitting = SHARE * free_bytes(assistant.encoder.device) / request_bytes(assistant, generation)
    return max(1, min(LARGEST, int(fitting)))


def request_bytes(assistant: Assistant, generation: Generation) -> int:
    """Estimate what one question takes while it is answered: KV cache, and one layer's activations."""
    config = assistant.model.config
    tower = assistant.model.get_vision_tower()
    crops = MOST_CROPS if getattr(config, "image_aspect_ratio", None) == "anyres" else 1
    patches = crops * tower.num_patches if tower is not None else 0
    prompt = patches + TEXT_TOKENS
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * head
    active = 8 * config.hidden_size + 3 * config.intermediate_size
    numbers = (prompt + generation.max_new_tokens) * cached * generation.num_beams + prompt * active
    return numbers * assistant.model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = Path("/proc/meminfo")
    if available.exists():  # Linux, where memory that only caches files counts as free
        for line in available.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return 4 * 2**30
