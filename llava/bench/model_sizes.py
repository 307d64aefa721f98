"""Proportions of real models, and of toys, for random weights; nothing here needs a library."""

from __future__ import annotations

from dataclasses import dataclass

# The proportions of openai/clip-vit-large-patch14-336.
VIT_L_14_336 = {
    "projection_dim": 768,
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "text_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "projection_dim": 768,
    },
}

# Llama's proportions. 1b is what the published code's speed was measured with (1.25 billion parameters), the
# others are those of Vicuna.
LANGUAGE_MODELS = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
    },
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}

TINY_CLIP = {
    "projection_dim": 16,
    "vision_config": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"image_size": 140, "patch_size": 14, "projection_dim": 16},
    },
    "text_config": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599, "projection_dim": 16},
    },
}
TINY_LANGUAGE_MODEL = {
    **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "vocab_size": 1000},
}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Proportions of a whole LLaVA.

    Attributes:
        language_model: Arguments of `LlavaConfig`.
        clip: Arguments of `CLIPConfig`.
    """

    language_model: dict[str, int]
    clip: dict


MODEL_SIZES = {
    "tiny": ModelSize(TINY_LANGUAGE_MODEL, TINY_CLIP),
    **{name: ModelSize(sizes, VIT_L_14_336) for name, sizes in LANGUAGE_MODELS.items()},
}
