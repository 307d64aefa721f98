"""An adapter is its weights: its config decides nothing that runs code, takes long or changes the base."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import UserError
from tests.conftest import TINY_CLIP, TINY_LLAVA
from tests.model.test_loading import load, logits, write_lora


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the tiny checkpoint, which needs no `non_lora_trainables.bin` of its own."""
    folder = tmp_path_factory.mktemp("checkpoints") / "llava-tiny-lora"
    write_lora(folder)
    torch.save({}, folder / "non_lora_trainables.bin")
    return folder


@pytest.fixture
def adapter(written: Path, tmp_path: Path):
    """Copy the adapter with changed keys of its config."""
    shutil.copytree(TINY_CLIP, tmp_path / TINY_CLIP.name)

    def copy(**changes: object) -> Path:
        folder = shutil.copytree(written, tmp_path / "adapter")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return copy


def test_a_module_that_an_adapter_names_is_not_imported(adapter, tmp_path, monkeypatch):
    """peft imports `megatron_core`; with `python -m` the working folder is where Python looks first."""
    for package in ("megatron", "stolen"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
        (tmp_path / package / "core.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folder = adapter(megatron_config={"a": 1}, megatron_core="megatron.core")
    with pytest.raises(UserError, match="adapter_config.json sets megatron_config to .*not supported"):
        load(folder, TINY_LLAVA)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="adapter_config.json sets megatron_core to 'stolen.core'"):
        load(adapter(megatron_core="stolen.core"), TINY_LLAVA)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "(.*.*.*.*.*.*.*.*.*.*.*)*x"},
        {"target_modules": ["down_proj"]},
        {"layers_to_transform": [0], "layers_pattern": "(a+)+$"},
        {"exclude_modules": "(a+)+$"},
        {"auto_mapping": {"base_model_class": "Stolen", "parent_library": "stolen"}},
        {"loftq_config": {"loftq_bits": 4}, "corda_config": {"cache_file": "/etc/passwd"}},
        {"runtime_config": {"ephemeral_gpu_offload": True}, "revision": "stolen", "peft_version": "99"},
    ],
)
def test_what_is_in_the_weights_or_says_nothing_is_not_asked(changes, adapter, written):
    shutil.copytree(TINY_CLIP, written.parent / TINY_CLIP.name, dirs_exist_ok=True)
    expected = logits(load(written, TINY_LLAVA)[1])
    assert not torch.equal(expected, logits(load(TINY_LLAVA)[1]))
    assert torch.equal(logits(load(adapter(**changes), TINY_LLAVA)[1]), expected)


def test_peft_warns_of_no_base_by_another_name(adapter):
    folder = adapter(base_model_name_or_path="somebody/llava-tiny")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load(folder, TINY_LLAVA)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; accepted: LORA"),
        (
            {"r": 10**9},
            r"has rank 4 for model.layers.0.self_attn.q_proj, and adapter_config.json says 1000000000",
        ),
        ({"rank_pattern": {"q_proj": 3}}, "has rank 4 for .*q_proj, and adapter_config.json says 3"),
        ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern.*names of layers"),
        ({"alpha_pattern": {".*.*.*x": 4}}, "alpha_pattern.*names of layers"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"layer_replication": [[0, 3], [1, 3]]}, "sets layer_replication"),
        ({"trainable_token_indices": [1]}, "sets trainable_token_indices"),
        ({"modules_to_save": "(a+)+$"}, "modules_to_save"),
        ({"bias": "some"}, "none, all or lora_only"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1;"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"modules_to_save": ["j"]}, "has 'j' in modules_to_save; accepted: layers of the base that have no"),
        ({"modules_to_save": ["nobody"]}, "has 'nobody' in modules_to_save"),
        ({"modules_to_save": ["lm_head"]}, "lacks 1 weights of the adapter.*lm_head.weight"),
        ({"lora_dropout": 2}, "lora_dropout is 2; accepted: a number from 0 to below 1"),
        ({"use_dora": True}, "lacks 6 weights of the adapter"),
        ({"from_the_future": {"import": "stolen"}}, "sets from_the_future"),
    ],
)
def test_what_is_not_plain_lora_is_refused(changes, reason, adapter):
    with pytest.raises(UserError, match=reason):
        load(adapter(**changes), TINY_LLAVA)


def test_alphas_of_single_layers_count(adapter, written):
    shutil.copytree(TINY_CLIP, written.parent / TINY_CLIP.name, dirs_exist_ok=True)
    base = load(TINY_LLAVA)[1]
    own = load(written, TINY_LLAVA)[1]
    other = load(adapter(alpha_pattern={"layers.0.self_attn.q_proj": 24}), TINY_LLAVA)[1]
    layers = [model.model.layers for model in (base, own, other)]
    q = [layer[0].self_attn.q_proj.weight for layer in layers]
    v = [layer[0].self_attn.v_proj.weight for layer in layers]
    # The config's alpha is 8. Worst difference seen: 2e-7.
    torch.testing.assert_close(q[2] - q[0], 3 * (q[1] - q[0]), rtol=1e-4, atol=1e-6)
    assert torch.equal(v[1], v[2])


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        (
            lambda name: None if "lora_B" in name else name,
            "lacks 6 weights of the adapter, the first is .*lora_B",
        ),
        (
            lambda name: name.replace("layers.2.", "layers.9."),
            "no adapter of this model's layers: model.layers.9",
        ),
        (lambda name: name.replace("lora_A", "lora_C"), "no adapter of this model's layers$"),
        (lambda name: name.replace("base_model.model.", ""), "no place|no adapter|lacks"),
        (
            lambda name: name.replace("layers.2.self_attn.q", "visitor.q") if "lora_B" in name else name,
            "lacks 1 weights of the adapter",
        ),
    ],
)
def test_weights_that_are_no_adapter_of_this_model(rename, reason, adapter):
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    save_file(
        {new: tensor for name, tensor in load_file(path).items() if (new := rename(name)) is not None}, path
    )
    with pytest.raises(UserError, match=reason):
        load(folder, TINY_LLAVA)


def test_weights_that_match_nothing_beside_an_adapter_that_fits_are_refused(adapter):
    """peft leaves them out, and the answers are those of another model."""
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    visitor = "base_model.model.model.layers.0.self_attn.x_proj.lora_B.weight"
    save_file(load_file(path) | {visitor: torch.zeros(64, 4)}, path)
    with pytest.raises(
        UserError, match=rf"holds 1 of 13 weights for which its base has no place.* {visitor}"
    ):
        load(folder, TINY_LLAVA)


def test_weights_of_the_base_that_an_adapter_brings_whole_are_used(adapter):
    """peft stores embeddings so, once a tokenizer has grown."""
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    rows = torch.randn(1600, 64, generator=torch.Generator().manual_seed(1))
    name = "base_model.model.model.embed_tokens.weight"
    save_file(load_file(path) | {name: rows}, path)
    assert torch.equal(load(folder, TINY_LLAVA)[1].model.embed_tokens.weight, rows)
    save_file(load_file(path) | {name: rows[:-1].clone()}, path)
    with pytest.raises(UserError, match=r"does not fit its base: .*: \(1599, 64\) instead of \(1600, 64\)"):
        load(folder, TINY_LLAVA)


def test_an_adapter_for_wider_layers_is_one_sentence(adapter):
    folder = adapter()
    path = folder / "adapter_model.safetensors"
    wide = {
        name: tensor.repeat(1, 2) if "lora_A" in name else tensor for name, tensor in load_file(path).items()
    }
    save_file(wide, path)
    with pytest.raises(UserError, match="does not fit its base"):
        load(folder, TINY_LLAVA)


def test_files_that_the_library_would_open_by_name_are_refused(adapter):
    """peft prefers adapter_model.safetensors, whatever it is, where this loader would take the other file."""
    folder = adapter()
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    load(folder, TINY_LLAVA)
    os.mkfifo(folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="is not a file"):
        load(folder, TINY_LLAVA)


def test_an_adapter_over_another_base_is_told(adapter, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    folder = adapter(base_model_name_or_path="lmsys/vicuna-7b-v1.5")
    copy = shutil.copytree(TINY_LLAVA, tmp_path / "vicuna-7b-v1.5")
    load(folder, copy)
    assert caplog.text == ""
    load(folder, TINY_LLAVA)
    (record,) = caplog.records
    assert f"was trained on lmsys/vicuna-7b-v1.5, and is used with {TINY_LLAVA}" in record.message
