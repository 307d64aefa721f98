"""The toy CLIP: its sizes, and what goes in and comes out, as the reducer sees it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from playground.shapes.clip_tokenizer import CONTEXT
from playground.shapes.presets import Preset
from playground.shapes.world import PATCH, SIZE

# Shapes: B pictures, N patches of a picture, T texts, D tower width, E joint width.

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PROJECTION = 64
HEAD = 32
_PREPROCESSOR = """{{
  "feature_extractor_type": "CLIPFeatureExtractor",
  "do_resize": true,
  "size": {size},
  "resample": 3,
  "do_center_crop": true,
  "crop_size": {size},
  "do_normalize": true,
  "image_mean": {mean},
  "image_std": {deviation}
}}
"""


def build_clip(preset: Preset, tokenizer: CLIPTokenizer, size: int = SIZE) -> CLIPModel:
    """A randomly initialized CLIP of the preset's size, for pictures of so many pixels in patches of 14."""
    width = preset.clip_width
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128 if width > 128 else width,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": (128 if width > 128 else width) // HEAD,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": PROJECTION,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": preset.clip_layers,
        "num_attention_heads": width // HEAD,
        "image_size": size,
        "patch_size": PATCH,
        "hidden_act": "gelu",
        "projection_dim": PROJECTION,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def preprocessor(size: int = SIZE) -> str:
    """Return ``preprocessor_config.json`` for pictures of so many pixels."""
    return _PREPROCESSOR.format(size=size, mean=list(MEAN), deviation=list(DEVIATION))


def save_clip(model: CLIPModel, unfinished: Path, folder: Path, size: int = SIZE) -> None:
    """Write a CLIP in half precision, with its image processor, beside its tokenizer.

    Args:
        model: Changed in place.
        unfinished: Has the tokenizer, and is renamed at the end.
        folder: Exists afterwards only if complete.
        size: Side of the pictures, in pixels.
    """
    model.to(torch.float16).save_pretrained(unfinished)
    (unfinished / "preprocessor_config.json").write_text(preprocessor(size))
    unfinished.rename(folder)


def normalize(pictures: NDArray[np.uint8]) -> Tensor:
    """Turn pictures (B, 224, 224, 3) into pixels (B, 3, 224, 224), as the checkpoint's processor does."""
    pixels = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def encode_picture(model: CLIPModel, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Run the vision tower over some patches of each picture.

    Args:
        model: The whole CLIP.
        pixels: Normalized pictures, (B, 3, 224, 224).
        patches: Indices of the patches to see, (B, N').

    Returns:
        The patches of the penultimate layer in the joint space (B, N', E), and the pooled picture in it (B,
        E).
    """
    tower = model.vision_model
    hidden = tower.embeddings(pixels)  # (B, 1 + N, D)
    chosen = patches.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, chosen)], dim=1)
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    last = tower.encoder.layers[-1](hidden, attention_mask=None)
    joint = model.visual_projection(tower.post_layernorm(hidden[:, 1:]))
    return joint, model.visual_projection(tower.post_layernorm(last[:, 0]))


def encode_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Pooled texts in the joint space, (T, E)."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    tokens = tokens.to(model.device)
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    return model.text_projection(pooled)
