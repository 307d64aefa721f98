"""The model that is measured: a checkpoint, or random weights of a named size where they fit."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from llava.assistant import Assistant
from llava.bench.model_sizes import MODEL_SIZES, ModelSize
from llava.bench.random_llava import language_model_bytes, random_assistant
from llava.engine.base import Generation
from llava.errors import UserError
from llava.eval.batch_size import request_bytes
from llava.eval.free_memory import free_bytes
from llava.model.placement import parse_device, parse_dtype
from llava.options import load_assistant

GIB = 2**30


def load_subject(options: Any) -> Assistant:
    """Load the checkpoint that the options name, or make random weights of their ``random`` size.

    Raises:
        UserError: If it cannot be loaded, or does not fit into memory.
    """
    if options.random is None:
        return load_assistant(options)
    device = parse_device(options.device)
    dtype = parse_dtype(options.dtype, device)
    require_fitting(options.random, device, dtype)
    size = MODEL_SIZES[options.random]
    assistant = random_assistant(size.language_model, size.clip, device=device, dtype=dtype)
    if options.compile_vision:
        assistant.encoder.tower.compile_encoder()
    if options.no_cuda_graphs:
        assistant.use_cuda_graphs(False)
    return assistant


def size_bytes(size: ModelSize, dtype: torch.dtype) -> int:
    """Return the bytes that a model with random weights takes while it is made."""
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(**size.clip))
    # CLIP is drawn in float32 before it gets its dtype.
    drawn = torch.float32.itemsize * sum(weight.numel() for weight in clip.parameters())
    return language_model_bytes(size.language_model, dtype) + drawn


def require_fitting(name: str, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse a size whose weights do not fit.

    Raises:
        UserError: If they do not.
    """
    free = free_bytes(device)
    needed = size_bytes(MODEL_SIZES[name], dtype)
    if needed <= free:
        return
    fitting = [other for other, size in MODEL_SIZES.items() if size_bytes(size, dtype) <= free]
    accepted = " or ".join(fitting) or "none"
    raise UserError(
        f"--random {name} in {str(dtype).removeprefix('torch.')} takes {needed / GIB:.1f} GiB and "
        f"{free / GIB:.1f} GiB of {device.type} memory are free; accepted in this dtype: {accepted}"
    )


def require_room(assistant: Assistant, batch: int, new_tokens: int) -> None:
    """Refuse a batch whose cache and activations do not fit beside the model.

    Raises:
        UserError: If they do not.
    """
    one = request_bytes(assistant, Generation(max_new_tokens=new_tokens))
    free = free_bytes(assistant.encoder.device)
    if batch * one > free:
        raise UserError(
            f"--batch-sizes {batch} takes about {batch * one / GIB:.1f} GiB beside the model and "
            f"{free / GIB:.1f} GiB are free; accepted: up to {int(free / one)}"
        )
