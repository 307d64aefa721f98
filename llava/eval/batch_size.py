"""How many questions are answered together, by the memory that is free."""

from __future__ import annotations

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.engine.row_cache import cache_bytes_per_position
from llava.eval.free_memory import free_bytes
from llava.eval.processes import Processes
from llava.model.prompt_model import LlavaPromptModel

LARGEST = 32  # beyond it a batch gains little and delays what is written
SHARE = 0.5  # of the free memory; the rest is for what the estimate leaves out
MOST_CROPS = 5  # of an image in tiles, with the resolutions of LLaVA-1.6
TEXT_TOKENS = 512  # of a long question with its template


def choose_batch_size(assistant: Assistant, generation: Generation, processes: Processes) -> int:
    """Return how many questions fit into half of this process's share of the free memory, 1 to 32.

    An engine in other processes has memory of its own.

    Args:
        assistant: Answers them.
        generation: How long the answers may be.
        processes: Those that answer questions, some of them maybe on the same device.
    """
    if isinstance(assistant.model, LlavaPromptModel):
        return LARGEST
    device = assistant.encoder.device
    free = free_bytes(device) / processes.sharing(device)
    return max(1, min(LARGEST, int(SHARE * free / request_bytes(assistant, generation))))


def request_bytes(assistant: Assistant, generation: Generation) -> int:
    """Estimate what one question takes while it is answered: KV cache, and one layer's activations."""
    config = assistant.model.config
    tower = assistant.model.get_vision_tower()
    crops = MOST_CROPS if getattr(config, "image_aspect_ratio", None) == "anyres" else 1
    patches = crops * tower.num_patches if tower is not None else 0
    prompt = patches + TEXT_TOKENS
    cached = (prompt + generation.max_new_tokens) * cache_bytes_per_position(assistant.model)
    active = prompt * (8 * config.hidden_size + 3 * config.intermediate_size) * assistant.model.dtype.itemsize
    return cached * generation.num_beams + active
