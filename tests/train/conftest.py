"""A tiny base, tiny data, and command lines that train on them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP = GOLDEN / "clip-vit-tiny-patch14-336"
LLAVA = GOLDEN / "llava-v1.5-tiny"

COLORS = ("red", "green", "blue", "black")


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint without anything of LLaVA, as a base for pretraining."""
    folder = tmp_path_factory.mktemp("base")
    config = json.loads((LLAVA / "config.json").read_text())
    config = {key: value for key, value in config.items() if "mm_" not in key and key != "image_aspect_ratio"}
    (folder / "config.json").write_text(
        json.dumps({**config, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    # As in Vicuna's: sampling settings without saying that it samples.
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
    weights = torch.load(LLAVA / "pytorch_model.bin", weights_only=True)
    kept = {name: tensor for name, tensor in weights.items() if "mm_projector" not in name}
    torch.save(kept, folder / "pytorch_model.bin")
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((LLAVA / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, captions.json for pretraining and turns.json for fine-tuning."""
    folder = tmp_path_factory.mktemp("data")
    captions, turns = [], []
    for index, color in enumerate(COLORS):
        picture = Image.new("RGB", (60, 40), "white")
        ImageDraw.Draw(picture).ellipse((5, 5, 30, 30), fill=color)
        picture.save(folder / f"{index}.png")
        shown = {"id": str(index), "image": f"{index}.png"}
        ask = {"from": "human", "value": "<image>\nWhat color is the circle?"}
        captions.append({**shown, "conversations": [ask, {"from": "gpt", "value": f"A {color} circle."}]})
        again = [{"from": "human", "value": "Is it round?"}, {"from": "gpt", "value": "Yes."}]
        turns.append({**shown, "conversations": [ask, {"from": "gpt", "value": f"{color}."}, *again]})
    text = [{"from": "human", "value": "Tell a joke."}, {"from": "gpt", "value": "No."}]
    turns += [{"id": f"text{index}", "conversations": text} for index in range(2)]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "turns.json").write_text(json.dumps(turns))
    return folder


Command = Callable[..., list[str]]


@pytest.fixture
def command(language_model: Path, data: Path, tmp_path: Path) -> Command:
    """Build a command line; keywords replace or add flags, ``None`` leaves one out."""

    def build(stage: str, **flags: object) -> list[str]:
        settings: dict[str, object] = {
            "model_name_or_path": language_model,
            "version": {"pretrain": "plain", "finetune": "v1"}[stage],
            "data_path": data / {"pretrain": "captions.json", "finetune": "turns.json"}[stage],
            "image_folder": data,
            "vision_tower": CLIP,
            "mm_vision_select_layer": -2,
            "mm_projector_type": "mlp2x_gelu",
            "mm_use_im_patch_token": False,
            "mm_vision_token_reduce_func": "TRIM:-1",
            "tune_mm_mlp_adapter": stage == "pretrain",
            "image_aspect_ratio": "pad",
            "output_dir": tmp_path / "out",
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "model_max_length": 256,
            **flags,
        }
        return [
            text
            for flag, value in settings.items()
            if value is not None
            for text in (f"--{flag}", str(value))
        ]

    return build


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights that a run left in its output folder."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    for name in ("mm_projector.bin", "non_lora_trainables.bin"):
        if (folder / name).is_file():
            found |= torch.load(folder / name, weights_only=True)
    return found
