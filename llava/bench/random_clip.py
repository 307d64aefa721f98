"""CLIP of any size with random weights, as a checkpoint folder, so that the real loading code runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

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


def write_random_clip(
    folder: Path, sizes: dict = VIT_L_14_336, seed: int = 0, device: torch.device | str = "cpu"
) -> Path:
    """Write a CLIP folder with random float16 weights and a tokenizer of single bytes.

    Args:
        folder: Created if missing.
        sizes: Arguments of `CLIPConfig`.
        seed: Of the weights.
        device: Where they are drawn; an accelerator takes a fraction of the seconds, and draws others.

    Returns:
        The folder.
    """
    torch.manual_seed(seed)
    config = CLIPConfig(**sizes)
    config.save_pretrained(folder)
    # Not by the model's own method: that imports DeepSpeed where it is installed, which talks on stdout.
    with torch.device(device):
        model = CLIPModel(config).half().cpu()
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    side = config.vision_config.image_size
    CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters)])}
    tokens["<|startoftext|>"] = config.text_config.bos_token_id
    tokens["<|endoftext|>"] = config.text_config.eos_token_id
    (folder / "vocab.json").write_text(json.dumps(tokens))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    return folder
