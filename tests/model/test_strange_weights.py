"""Weights that a checkpoint should not have: used and said, or refused, and never passed over in silence."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.assistant import SHAPES_CHECKPOINT, Assistant
from llava.errors import UserError

CLIP = SHAPES_CHECKPOINT.parent / "clip-shapes"
TOWER = "model.vision_tower.vision_tower."
NORM = "model.norm.weight"
LAYER = "model.layers.0.mlp.up_proj.weight"
QUESTION, IMAGE = "What shape is the yellow object?", Path("images/crowded.png")


@pytest.fixture
def load(tmp_path):
    """Load a copy of the bundled model whose weights a function has changed."""
    shutil.copytree(SHAPES_CHECKPOINT, tmp_path / "model")
    shutil.copytree(CLIP, tmp_path / "clip-shapes")

    def load(change):
        weights = dict(load_file(SHAPES_CHECKPOINT / "model.safetensors"))
        change(weights)
        save_file(weights, tmp_path / "model" / "model.safetensors")
        return Assistant.load(str(tmp_path / "model"), device="cpu")

    return load


def clip_weights(dtype=torch.float16):
    stored = load_file(CLIP / "model.safetensors")
    return {
        f"{TOWER}{name}": one.to(dtype) for name, one in stored.items() if name.startswith("vision_model.")
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [LAYER, NORM, "lm_head.weight", "model.mm_projector.0.bias"])
def test_weights_that_are_not_finite_are_refused(load, name, value):
    def spoil(weights):
        weights[name] = weights[name].clone()
        weights[name].view(-1)[3] = value

    with pytest.raises(
        UserError, match=rf"not finite \(NaN or infinite\): 1 of \d+ tensors, the first is {name}"
    ):
        load(spoil)


def test_large_weights_are_finite(load):
    load(lambda weights: weights.update({LAYER: torch.full_like(weights[LAYER], 60000.0)}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights(load, dtype):
    with pytest.raises(UserError, match=rf"stores {NORM} as \w+; accepted: numbers with a fraction"):
        load(lambda weights: weights.update({NORM: weights[NORM].to(dtype)}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_a_copy_of_clip_is_no_other_tower(load, caplog, dtype):
    assistant = load(lambda weights: weights.update(clip_weights(dtype)))
    assert "vision tower" not in caplog.text
    assert assistant.answer(QUESTION, IMAGE).text == "circle"


def test_another_tower_is_used_and_said(load, caplog):
    def train(weights):
        weights.update(clip_weights())
        name = f"{TOWER}vision_model.encoder.layers.1.mlp.fc1.weight"
        weights[name] = weights[name] * 1.05

    assistant = load(train)
    assert "stores a vision tower unlike that of" in caplog.text
    found = assistant.encoder.tower.state_dict()["vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight"]
    clip = load_file(CLIP / "model.safetensors")["vision_model.encoder.layers.1.mlp.fc1.weight"]
    assert torch.equal(found.half(), clip * 1.05)


def test_what_is_stored_and_not_read_is_said_once(load, caplog):
    load(lambda weights: weights.update({"somebody.elses": torch.zeros(2)}))
    assert caplog.text.count("weights of which this model has none; the first is somebody.elses") == 1
