"""Reading CLIP: each half built as far as it is used, and filled from the folder's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
)

from llava.errors import UserError
from llava.internals import build_model
from llava.model.checkpoint_files import StoredWeight, open_weights, shapes_of
from llava.model.checkpoint_sizes import check_layers, check_shapes
from llava.model.multimodal_encoder.cut_encoder import CutVisionModel

Half = TypeVar("Half", CutVisionModel, CLIPTextModelWithProjection)

ATTENTION = "sdpa"  # never what a config names, which may be a kernel on a hub


def _layers_to_run(select_layer: int, layers: int) -> int:
    """Return how many of the encoder's layers lead to its ``hidden_states[select_layer]``.

    Raises:
        UserError: If there is no such hidden state.
    """
    count = select_layer if select_layer >= 0 else layers + 1 + select_layer
    if not 0 <= count <= layers:
        raise UserError(
            f"mm_vision_select_layer is {select_layer}; this CLIP has hidden states {-layers - 1} to {layers}"
        )
    return count


def load_vision_half(config: CLIPVisionConfig, select_layer: int, folder: Path) -> CutVisionModel:
    """Load CLIP's vision encoder up to the layer that is read; ``config`` becomes that of this part."""
    halves = ("vision_model.", "visual_projection.", "text_", "logit_scale")
    weights = {
        # A vision encoder that was saved alone lacks the prefix of its half.
        name if name.startswith(halves) else f"vision_model.{name}": weight
        for name, weight in open_weights(folder).items()
    }
    check_layers(config.num_hidden_layers, weights, "vision_model.encoder.layers.", folder)
    layers = config.num_hidden_layers
    config.num_hidden_layers = _layers_to_run(select_layer, layers)
    if "visual_projection.weight" not in weights:
        # Only a reducer reads the projection, and none can without the text encoder.
        config.projection_dim = 1
        weights["visual_projection.weight"] = torch.zeros(1, config.hidden_size)
    model = _load_half(CutVisionModel, config, weights, folder)
    model.layers_not_built = layers - config.num_hidden_layers
    return model


def load_next_layer(config: CLIPVisionConfig, folder: Path) -> NextLayer:
    """Load what the first layer that was not built makes of its input before it attends, frozen.

    Args:
        config: From `load_vision_half`.
        folder: CLIP's.

    Raises:
        UserError: If all layers were built.
    """
    weights = open_weights(folder)
    shown = f"encoder.layers.{config.num_hidden_layers}."
    own = {name.partition(shown)[2]: name for name in weights if shown in name and "text_model" not in name}
    if not own:
        raise UserError(
            "this token reduction reads the layer behind the selected one (mm_vision_select_layer), which is "
            "the last"
        )
    layer = NextLayer(config)
    names = {
        name: name if name.startswith("layer_norm1") else f"self_attn.{name}" for name in layer.state_dict()
    }
    missing = [name for name in names.values() if name not in own]
    if missing:
        raise UserError(f"{folder} lacks {shown}{missing[0]}")
    layer.load_state_dict({name: weights[own[stored]][...] for name, stored in names.items()}, assign=True)
    return layer.requires_grad_(False).eval()


class NextLayer(nn.Module):
    """The norm and the projections to queries and keys of one layer.

    Args:
        config: Of the vision encoder.
    """

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the query of CLS (1, D) and the keys (1 + N, D) for hidden states (1 + N, D)."""
        normed = self.layer_norm1(hidden)
        return self.q_proj(normed[:1]), self.k_proj(normed)


def load_text_half(config: CLIPTextConfig, folder: Path) -> CLIPTextModelWithProjection:
    """Load CLIP's text encoder."""
    weights = open_weights(folder)
    check_layers(config.num_hidden_layers, weights, "text_model.encoder.layers.", folder)
    return _load_half(CLIPTextModelWithProjection, config, weights, folder)


def _load_half(model_class: type[Half], config: Any, weights: dict[str, StoredWeight], folder: Path) -> Half:
    """Build one half of CLIP and fill it from stored weights, frozen and in their stored type.

    Args:
        model_class: The half.
        config: Of the half.
        weights: From `open_weights`, under the names of the half; others are left.
        folder: CLIP's, for messages.

    Raises:
        UserError: If weights are missing or of another shape.
    """
    shapes = shapes_of(weights)
    surplus = check_shapes(lambda: build_model(model_class, config, ATTENTION), shapes, folder)
    with init_empty_weights(include_buffers=False):
        model = build_model(model_class, config, ATTENTION)
    tensors = {name: weights[name][...] for name in weights.keys() - surplus}
    whole_numbers = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if whole_numbers:
        raise UserError(f"{folder} holds whole numbers where weights should be, in {min(whole_numbers)}")
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval()
