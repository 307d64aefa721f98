"""A merged checkpoint answers as base and adapter together, wherever it lies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.model.checkpoint_files import CheckpointKind, checkpoint_kind, iterate_weights
from scripts.merge_lora_weights import main
from tests.conftest import TINY_CLIP, TINY_LLAVA
from tests.model.test_loading import load, logits, write_lora

TOWER = "model.vision_tower."


def merge(adapter: Path, base: Path, target: Path, *flags: str) -> int:
    return main(["--model-p", str(adapter), "--model-b", str(base), "--save", str(target), *flags])


@pytest.fixture
def adapted(checkpoint_copy: Callable[..., Path]) -> Callable[..., tuple[Path, Path]]:
    """Make a base and an adapter of it, beside their CLIP; keywords change both configs."""

    def make(dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Path, Path]:
        base = checkpoint_copy(**config)
        # As Vicuna's: sampling settings that do not say that it samples.
        (base / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6}))
        weights = {name: value.to(dtype) for name, value in iterate_weights(base)}
        torch.save(weights, base / "pytorch_model.bin")
        adapter = base.parent / "adapter"
        lora = write_lora(adapter, of=base)
        beside = {name: value * 2 for name, value in lora.state_dict().items() if "mm_projector" in name}
        torch.save(beside, adapter / "non_lora_trainables.bin")
        return base, adapter

    return make


def test_a_merged_model_gives_the_same_logits(
    adapted: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, adapter = adapted(mm_vision_token_reduce_func="TRIM:64", conv_template="vicuna_v1")
    target = tmp_path / "far" / "away" / "merged"
    assert merge(adapter, base, target) == 0
    assert checkpoint_kind(target) is CheckpointKind.FULL
    monkeypatch.chdir(tmp_path / "far")
    merged, together = load(target)[1], load(adapter, base)[1]
    assert torch.equal(logits(merged), logits(together))
    assert not torch.allclose(logits(merged), logits(load(base)[1]), atol=1e-3)
    config = json.loads((target / "config.json").read_text())
    expected = {
        "mm_vision_tower": str(adapter.parent / TINY_CLIP.name),
        "mm_vision_token_reduce_func": "TRIM:64",
        "conv_template": "vicuna_v1",
        "model_type": "llava_llama",
    }
    assert {key: config[key] for key in expected} == expected
    assert not [name for name, _ in iterate_weights(target) if name.startswith(TOWER)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_stay_sixteen_bits(
    adapted: Callable[..., tuple[Path, Path]], dtype: torch.dtype, tmp_path: Path
):
    base, adapter = adapted(dtype)
    assert merge(adapter, base, tmp_path / "merged") == 0
    assert {value.dtype for _, value in iterate_weights(tmp_path / "merged")} == {dtype}
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_a_relative_or_a_hub_tower_is_found_again(
    adapted: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from llava.model import checkpoint_files

    base, adapter = adapted()
    config = json.loads((adapter / "config.json").read_text())
    monkeypatch.chdir(TINY_CLIP.parent)
    for name, found in {f"./{TINY_CLIP.name}": str(TINY_CLIP), "somebody/clip": "somebody/clip"}.items():
        monkeypatch.setattr(checkpoint_files, "_download", lambda *_: TINY_CLIP)
        (adapter / "config.json").write_text(json.dumps({**config, "mm_vision_tower": name}))
        shutil.rmtree(adapter.parent / TINY_CLIP.name, ignore_errors=True)
        target = tmp_path / name.replace("/", "_")
        assert merge(adapter, base, target) == 0
        assert json.loads((target / "config.json").read_text())["mm_vision_tower"] == found


def test_a_clip_that_was_trained_with_the_base_is_kept(
    adapted: Callable[..., tuple[Path, Path]], tmp_path: Path
):
    base, adapter = adapted(unfreeze_mm_vision_tower=True)
    weight = f"{TOWER}vision_tower.vision_model.pre_layrnorm.weight"
    weights = dict(iterate_weights(base)) | {weight: torch.full((48,), 3.0)}
    torch.save(weights, base / "pytorch_model.bin")
    assert merge(adapter, base, tmp_path / "merged") == 0
    assert dict(iterate_weights(tmp_path / "merged"))[weight].eq(3).all()
    assert torch.equal(logits(load(tmp_path / "merged")[1]), logits(load(adapter, base)[1]))


def test_what_cannot_work_is_one_sentence(
    adapted: Callable[..., tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, adapter = adapted()
    mistakes = {
        (TINY_LLAVA, base, tmp_path / "new"): "is not a LoRA checkpoint: it has no adapter_model.safetensors",
        (Path("/nowhere"), base, tmp_path / "new"): "no model folder '/nowhere'",
        (adapter, Path("/nowhere"), tmp_path / "new"): "no model folder '/nowhere'",
        (adapter, TINY_CLIP, tmp_path / "new"): "holds no language model",
        (adapter, base, base): "holds a model already; name another folder with --save-model-path",
        (adapter, base, Path("/dev/null/new")): "'/dev/null/new' cannot be created",
    }
    for paths, sentence in mistakes.items():
        assert merge(*paths) == 2
        captured = capsys.readouterr()
        assert captured.err.splitlines()[-1].startswith("error: ")
        assert sentence in captured.err.splitlines()[-1]
        assert not (tmp_path / "new").exists()


def test_another_base_than_the_adapter_names_is_merged_only_by_force(
    adapted: Callable[..., tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base, adapter = adapted()
    path = adapter / "adapter_config.json"
    named = json.loads(path.read_text()) | {"base_model_name_or_path": "lmsys/vicuna-7b-v1.5"}
    path.write_text(json.dumps(named))
    assert merge(adapter, base, tmp_path / "merged") == 2
    assert (
        f"{adapter} was trained on 'lmsys/vicuna-7b-v1.5', and --model-base is {str(base)!r}"
        in capsys.readouterr().err.splitlines()[-1]
    )
    assert not (tmp_path / "merged").exists()
    assert merge(adapter, base, tmp_path / "merged", "--force") == 0
    moved = shutil.copytree(base, base.parent / "vicuna-7b-v1.5")
    assert merge(adapter, moved, tmp_path / "again") == 0


def test_every_option_is_required(capsys: pytest.CaptureFixture[str]):
    assert main(["--model-path", "any"]) == 2
    assert "--model-base, --save-model-path" in capsys.readouterr().err
