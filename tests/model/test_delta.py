"""Models as the difference to their base, and checkpoints written anew."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.model import apply_delta, consolidate, make_delta
from llava.model.checkpoint_files import iterate_weights
from tests.conftest import TINY_LLAVA
from tests.model.test_loading import load, logits


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A language model of other weights, with fewer tokens and without a projector."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        shutil.copy(TINY_LLAVA / name, folder)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(weight.shape, generator=generator) / 16
        for name, weight in iterate_weights(TINY_LLAVA)
        if "mm_projector" not in name
    }
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:-8].clone()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_base_and_difference_make_the_model(base: Path, tmp_path: Path):
    flags = ["--base-model-path", str(base)]
    delta, again = tmp_path / "delta", tmp_path / "again"
    assert make_delta.main([*flags, "--target-model-path", str(TINY_LLAVA), "--delta-path", str(delta)]) == 0
    stored, whole = load_file(delta / "model.safetensors"), dict(iterate_weights(TINY_LLAVA))
    of_base = dict(iterate_weights(base))
    name = "model.layers.1.mlp.up_proj.weight"
    assert stored[name].dtype is torch.float16
    torch.testing.assert_close(stored[name].float(), whole[name] - of_base[name], rtol=0, atol=1e-3)
    projector = "model.mm_projector.0.weight"
    assert torch.equal(stored[projector], whole[projector].half())
    embeddings = "model.embed_tokens.weight"
    assert torch.equal(stored[embeddings][-8:], whole[embeddings][-8:].half())
    assert apply_delta.main([*flags, "--target-model-path", str(again), "--delta-path", str(delta)]) == 0
    restored = load_file(again / "model.safetensors")
    assert restored.keys() == whole.keys()
    for name, weight in restored.items():  # worst difference seen: 5e-4, of sums in float16
        torch.testing.assert_close(weight.float(), whole[name].float(), rtol=0, atol=1e-3)
    assert load(again)[0]("What is it?").input_ids == load(TINY_LLAVA)[0]("What is it?").input_ids


def test_what_a_model_has_of_vision_stays(base: Path, checkpoint_copy, tmp_path: Path):
    folder = checkpoint_copy(unfreeze_mm_vision_tower=True, mm_patch_merge_type="spatial_unpad")
    weight = "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight"
    own = {weight: torch.full((48,), 3.0), "model.image_newline": torch.full((64,), 2.0)}
    torch.save(dict(iterate_weights(folder)) | own, folder / "pytorch_model.bin")
    flags = ["--base-model-path", str(base)]
    delta, again, new = (tmp_path / name for name in ("delta", "again", "new"))
    assert make_delta.main([*flags, "--target-model-path", str(folder), "--delta-path", str(delta)]) == 0
    assert apply_delta.main([*flags, "--target-model-path", str(again), "--delta-path", str(delta)]) == 0
    assert consolidate.main(["--src", str(folder), "--dst", str(new)]) == 0
    for result in (delta, again, new):
        stored = load_file(result / "model.safetensors")
        assert all(torch.equal(stored[name].float(), value) for name, value in own.items())


def test_a_base_of_another_size_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights = dict(iterate_weights(base))
    weights["model.norm.weight"] = weights["model.norm.weight"][:-1].clone()
    torch.save(weights, base / "pytorch_model.bin")
    flags = ["--base-model-path", str(base), "--target-model-path", str(TINY_LLAVA)]
    assert make_delta.main([*flags, "--delta-path", str(tmp_path / "delta")]) == 2
    assert "its model.norm.weight is of shape (63,), and (64,) is needed" in capsys.readouterr().err
    assert not (tmp_path / "delta").exists()


def test_a_checkpoint_is_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "new"
    flags = ["--src", str(TINY_LLAVA), "--dst", str(target)]
    assert consolidate.main(flags) == 0
    assert capsys.readouterr().err == ""
    assert {weight.dtype for weight in load_file(target / "model.safetensors").values()} == {torch.float16}
    expected = logits(load(TINY_LLAVA)[1])
    # Worst difference seen: 4e-4, of weights in float16.
    torch.testing.assert_close(logits(load(target)[1]), expected, rtol=0, atol=5e-3)
    assert consolidate.main(flags) == 2
    assert f"{target} holds a model already" in capsys.readouterr().err
