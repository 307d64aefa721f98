"""What each stage from pixels to tokens must do at least, counted from a model's own modules.

Shapes: B images or prompts, N patches, D width of the tower, T positions, H width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from llava.bench.floors import Work
from llava.engine.row_cache import cache_bytes_per_position, head_width
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def weight_bytes(*modules: nn.Module) -> int:
    """Return the bytes of all weights of modules."""
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def linear_weights(module: nn.Module) -> int:
    """Return the elements of the weights of all linear layers; a position costs two operations for each."""
    # Not the stored elements, of which a byte of a quantized layer holds two.
    linear = (layer for layer in module.modules() if isinstance(layer, nn.Linear))
    return sum(layer.in_features * layer.out_features for layer in linear)


def attention_flops(layers: int, width: int, pairs: float) -> float:
    """Return the operations of attention: scores and mixture of every pair of a query with a key."""
    return 4 * layers * width * pairs


def causal_pairs(positions: int) -> float:
    """Return the pairs of a causal mask, in which a position sees itself and those before it."""
    return positions * (positions + 1) / 2


def vision_work(tower: CLIPVisionTower, batch: int) -> Work:
    """Count the vision encoder for ``batch`` crops of images, of which most have one."""
    vision = tower.vision_tower.vision_model
    width, patches, itemsize = tower.hidden_size, tower.num_patches, tower.dtype.itemsize
    embedding = vision.embeddings.patch_embedding.weight.numel()
    positions = patches + 1
    flops = 2 * linear_weights(vision.encoder) * positions + 2 * embedding * patches
    flops += attention_flops(len(vision.encoder.layers), width, positions**2)
    pixels = 3 * tower.config.image_size**2
    return Work(weight_bytes(vision) + itemsize * batch * (pixels + patches * width), batch * flops)


def text_work(tower: CLIPVisionTower, lengths: Sequence[int]) -> Work:
    """Count CLIP's text encoder for questions of these lengths in tokens."""
    model = tower.text_tower
    assert model is not None
    encoder, head = model.text_model.encoder, model.text_projection
    width = model.config.hidden_size
    flops = sum(
        2 * linear_weights(encoder) * length
        + attention_flops(len(encoder.layers), width, causal_pairs(length))
        + 2 * head.weight.numel()
        for length in lengths
    )
    return Work(weight_bytes(encoder, head), flops)


def selection_work(tower: CLIPVisionTower, batch: int, tokens: int, reads_question: bool) -> Work:
    """Count the way from ``batch`` images' patches to ``tokens`` tokens of all, by scores or without."""
    width, patches, itemsize = tower.hidden_size, tower.num_patches, tower.dtype.itemsize
    projection = tower.vision_tower.visual_projection.weight
    work = Work(itemsize * width * (batch * patches + tokens))
    if reads_question:
        work += Work(projection.nbytes, 2 * batch * (projection.numel() + patches * width))
    return work


def projector_work(projector: nn.Module, tokens: int, widths: int, itemsize: int) -> Work:
    """Count the projector for ``tokens`` tokens; ``widths`` is D + H."""
    moved = weight_bytes(projector) + itemsize * tokens * widths
    return Work(moved, 2 * linear_weights(projector) * tokens)


def _attention_width(model: LlavaLlamaForCausalLM) -> int:
    return model.config.num_attention_heads * head_width(model.config)


def prefill_work(model: LlavaLlamaForCausalLM, lengths: Sequence[int]) -> Work:
    """Count the language model's first step for prompts of these lengths, without padding."""
    layers, head = model.get_model().layers, model.lm_head
    width = model.config.hidden_size
    flops = sum(
        2 * linear_weights(layers) * length
        + attention_flops(len(layers), _attention_width(model), causal_pairs(length))
        + 2 * head.weight.numel()
        for length in lengths
    )
    per_position = width * model.dtype.itemsize + cache_bytes_per_position(model)
    return Work(weight_bytes(layers, head) + per_position * sum(lengths), flops)


def decode_work(model: LlavaLlamaForCausalLM, lengths: Sequence[float]) -> Work:
    """Count one step of rows that have so many positions each, the new one included."""
    layers, head = model.get_model().layers, model.lm_head
    flops = sum(
        2 * (linear_weights(layers) + head.weight.numel())
        + attention_flops(len(layers), _attention_width(model), length)
        for length in lengths
    )
    return Work(weight_bytes(layers, head) + cache_bytes_per_position(model) * sum(lengths), flops)
