"""Reading CLIP: each half built as far as it is used, and filled from the folder's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
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
