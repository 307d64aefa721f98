"""What reduction methods read inside the vision encoder, from the outputs of query and key projections.

The encoder runs as always: no attention is computed by another kernel, and no hidden state is kept.

Shapes: B images, L positions with CLS in front, N patches, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from llava.model.multimodal_encoder.cut_encoder import CutVisionModel
from llava.model.multimodal_encoder.reducers.attention import cls_attention, mean_keys, received_attention
from llava.model.multimodal_encoder.reducers.base import Signal

EARLY_SHARE = 9 / 24  # of CLIP ViT-L's layers HiPrune reads the ninth


def read_signals(
    encoder: CutVisionModel, pixels: Tensor, wanted: Collection[Signal]
) -> tuple[Tensor, dict[Signal, Tensor]]:
    """Run the encoder, and listen to the layers that the wanted signals come from.

    Args:
        encoder: The vision encoder, which ends at the selected layer.
        pixels: (B, 3, height, width).
        wanted: What else to return.

    Returns:
        The hidden state (B, L, D), and the signals: `Signal.CLS` (B, D), `Signal.CLS_ATTENTION` (B, N),
        `Signal.KEYS` (B, N, D / heads), `Signal.RECEIVED_ATTENTION` (B, 2, N).
    """
    layers = encoder.vision_model.encoder.layers
    last = len(layers) - 1
    early = min(max(1, round(EARLY_SHARE * (len(layers) + encoder.layers_not_built))) - 1, last)
    heads = encoder.config.num_attention_heads
    heard: dict[int, dict[str, Tensor]] = {}
    with ExitStack() as listening:
        for number in _layers_of(wanted, early, last):
            heard[number] = {}
            attention = layers[number].self_attn
            for name in ("q_proj", "k_proj"):
                hook = getattr(attention, name).register_forward_hook(_keeper(heard[number], name))
                listening.callback(hook.remove)
        hidden = encoder.selected_hidden_state(pixels)

    def each(function: Callable[..., Tensor], number: int) -> Tensor:
        """Call a function of queries and keys (L, D) for every image, (B, N)."""
        projections = zip(heard[number]["q_proj"], heard[number]["k_proj"], strict=True)
        return torch.stack([function(query, key, heads) for query, key in projections])

    found: dict[Signal, Tensor] = {}
    for signal in wanted:
        if signal is Signal.CLS:
            found[signal] = hidden[:, 0]
        elif signal is Signal.CLS_ATTENTION:
            found[signal] = each(cls_attention, last)
        elif signal is Signal.KEYS:
            found[signal] = torch.stack([mean_keys(keys, heads) for keys in heard[last]["k_proj"]])
        else:
            both = [each(received_attention, number) for number in (early, last)]
            found[signal] = torch.stack(both, dim=1)
    return hidden, found


def _layers_of(wanted: Collection[Signal], early: int, last: int) -> set[int]:
    """Return the layers to listen to."""
    early_layers = {early} if Signal.RECEIVED_ATTENTION in wanted else set()
    return early_layers | ({last} if set(wanted) - {Signal.CLS} else set())


def _keeper(place: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return a forward hook that puts a module's output somewhere, if this thread has called the module."""
    own = threading.get_ident()

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        """Put the output (B, L, D) there."""
        del module, inputs
        if threading.get_ident() == own:  # others may run the same encoder meanwhile
            place[name] = output

    return keep
