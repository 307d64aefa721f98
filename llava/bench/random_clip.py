"""CLIP of any size with random weights, as a checkpoint folder, so that the real loading code runs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from llava.bench.model_sizes import VIT_L_14_336


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
