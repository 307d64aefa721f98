"""A config that asks for more than is stored is refused before anything of that size is built."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import UserError
from llava.model.checkpoint_files import iterate_weights
from tests.conftest import TINY_CLIP
from tests.model.test_loading import load

GIB = 2**30


@pytest.fixture(autouse=True)
def _little_memory():
    """Let an attack fail in this process, where nothing else asks for so much."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4 * GIB, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def clip_with(folder: Path, half: str, **changes: object) -> None:
    """Change the config of one half of the CLIP beside a checkpoint."""
    path = folder.parent / TINY_CLIP.name / "config.json"
    config = json.loads(path.read_text())
    config[half].update(changes)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, and 3 layers are stored"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, and 3 layers are stored"),
        ({"mm_projector_type": "mlp99999x_gelu"}, "mlp<N>x_gelu with N from 1 to 99"),
        ({"mm_projector_type": "mlp99x_gelu"}, "lacks 194 weights of the model"),
        ({"mm_hidden_size": 10**9}, r"mm_projector.0.weight: \(64, 48\) instead of \(64, 1000000000\)"),
        ({"intermediate_size": 10**9}, "does not fit the config"),
        ({"vocab_size": 10**9}, r"embed_tokens.weight: \(1600, 64\) instead of \(1000000000, 64\)"),
        ({"hidden_size": 2 * 10**9}, "does not fit the config|no model can be built"),
        ({"head_dim": 10**9}, "does not fit the config"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "4 attention heads cannot share 3"),
        (
            {"mm_patch_merge_type": "spatial_unpad"},
            "lacks 1 weights of the model, the first is model.image_newline",
        ),
    ],
)
def test_a_language_model_larger_than_its_weights(changes, reason, checkpoint_copy):
    with pytest.raises(UserError, match=reason):
        load(checkpoint_copy(**changes))


@pytest.mark.parametrize(
    ("half", "changes", "reason"),
    [
        ("vision_config", {"num_hidden_layers": 10**9}, "is 1000000000, and 4 layers are stored"),
        ("vision_config", {"num_hidden_layers": 3}, "is 3, and 4 layers are stored"),
        ("vision_config", {"hidden_size": 4 * 10**6}, "does not fit the config"),
        (
            "vision_config",
            {"image_size": 10**6},
            "makes images of 336 x 336 pixels, and this CLIP sees 1000000",
        ),
        ("vision_config", {"patch_size": 1}, "does not fit the config"),
        ("text_config", {"num_hidden_layers": 10**9}, "is 1000000000, and 2 layers are stored"),
        ("text_config", {"vocab_size": 10**9}, "does not fit the config"),
        ("text_config", {"max_position_embeddings": 10**9}, "does not fit the config"),
    ],
)
def test_a_clip_larger_than_its_weights(half, changes, reason, checkpoint_copy):
    folder = checkpoint_copy(mm_vision_token_reduce_func="TRIM:-1")
    clip_with(folder, half, **changes)
    with pytest.raises(UserError, match=reason):
        load(folder)


def test_labels_by_the_billion_mean_nothing(checkpoint_copy, loaded):
    """transformers names every label of a config as soon as it is made."""
    folder = checkpoint_copy(num_labels=10**9, id2label={"0": "a"})
    clip_with(folder, "vision_config", num_labels=10**9)
    model = load(folder)[1]
    assert model.config.num_labels == loaded[1].config.num_labels


def test_a_vision_half_saved_alone_needs_no_projection(checkpoint_copy, loaded):
    folder = checkpoint_copy()
    clip = folder.parent / TINY_CLIP.name
    config = json.loads((clip / "config.json").read_text())["vision_config"]
    (clip / "config.json").write_text(json.dumps({**config, "projection_dim": 10**9}))
    vision = {
        name.removeprefix("vision_model."): tensor
        for name, tensor in load_file(clip / "model.safetensors").items()
        if name.startswith("vision_model.")
    }
    save_file(vision, clip / "model.safetensors")
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    tower, whole = load(folder)[1].get_vision_tower(), loaded[1].get_vision_tower()
    assert torch.equal(tower.encode(pixels), whole.encode(pixels))


def test_weights_that_nothing_reads_are_said(checkpoint_copy, caplog):
    folder = checkpoint_copy()
    weights = dict(iterate_weights(folder))
    known = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # as old checkpoints store
    known["model.vision_tower.vision_tower.vision_model.post_layernorm.weight"] = torch.ones(48)
    torch.save(weights | known, folder / "pytorch_model.bin")
    load(folder)
    assert not caplog.records
    torch.save(weights | {"model.extra.weight": torch.ones(1)}, folder / "pytorch_model.bin")
    load(folder)
    assert "stores 1 weights of which this model has none; the first is model.extra.weight" in caplog.text


def test_an_attack_ends_at_once_and_in_one_line(checkpoint_copy):
    """As a user meets it: within the memory of the command, and without a traceback."""
    folder = checkpoint_copy(num_hidden_layers=10**9, num_labels=10**9)
    image = TINY_CLIP.parent / "img0.png"
    done = subprocess.run(
        [sys.executable, "-m", "llava.main", "ask", "--model-path", folder, "--image", image, "What?"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "num_hidden_layers is 1000000000," in done.stderr


def test_names_alone_are_no_layers(checkpoint_copy):
    folder = checkpoint_copy(num_hidden_layers=3000)
    weights = dict(iterate_weights(folder))
    weights |= {f"model.layers.{index}.x": torch.empty(0) for index in range(3, 3000)}
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="num_hidden_layers is 3000, and 3 layers are stored"):
        load(folder)


def test_tied_embeddings_are_stored_once(checkpoint_copy):
    folder = checkpoint_copy(tie_word_embeddings=True)
    weights = dict(iterate_weights(folder))
    del weights["lm_head.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    model = load(folder)[1]
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
