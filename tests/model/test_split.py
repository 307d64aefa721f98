"""The language model as a folder of its own answers as it does inside of a LLaVA, and is written once."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from llava.errors import UserError
from llava.model import split
from llava.model.checkpoint_files import iterate_weights
from llava.model.loading import load_checkpoint, load_prompt_model
from llava.model.placement import choose_placement
from llava.model.split import cache_folder, split_language_model
from tests.conftest import TINY_LLAVA
from tests.model.test_loading import base, write_lora  # noqa: F401 - a fixture

CPU = choose_placement("cpu", None)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "language_models"


def split_of(folder, base_folder=None):
    model = load_prompt_model(str(folder), base_folder, CPU)
    return split_language_model(str(folder), base_folder, model.config.vocab_size, CPU.dtype)


def same_logits(folder, base_folder=None):
    """Split a checkpoint and compare the part with the whole; returns the part's folder."""
    target = split_of(folder, base_folder)
    whole = load_checkpoint(str(folder), base_folder, CPU).model
    part, report = LlamaForCausalLM.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not any(report.values()), "nothing is missing, nothing is left over"
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(1, 7, whole.config.hidden_size, generator=generator)
    with torch.no_grad():
        assert torch.equal(part(inputs_embeds=embeddings).logits, whole(inputs_embeds=embeddings).logits)
    assert torch.equal(part.get_input_embeddings().weight, whole.get_input_embeddings().weight)
    return target


def in_shards(folder, *groups):
    """Store a checkpoint's weights in several safetensors files, one per group of beginnings of names."""
    weights = dict(iterate_weights(folder))
    (folder / "pytorch_model.bin").unlink()
    weight_map = {}
    for number, beginnings in enumerate(groups):
        own = {name: one for name, one in weights.items() if name.startswith(beginnings)}
        save_file(own, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, f"model-{number}.safetensors")
    assert weight_map.keys() == weights.keys()
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


def test_an_old_checkpoint_becomes_a_plain_llama(checkpoint_copy):
    target = same_logits(checkpoint_copy())
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert not any(key.startswith(("mm_", "tune_", "auto")) for key in config)


def test_files_of_the_language_model_alone_are_linked(checkpoint_copy):
    folder = checkpoint_copy()
    in_shards(folder, ("model.layers.", "model.norm"), ("model.embed", "model.mm_projector", "lm_head"))
    target = same_logits(folder)
    inodes = {path.stat().st_ino for path in target.glob("*.safetensors")}
    assert (folder / "model-0.safetensors").stat().st_ino in inodes
    assert (folder / "model-1.safetensors").stat().st_ino not in inodes


def test_files_are_copied_where_they_cannot_be_linked(checkpoint_copy, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    folder = checkpoint_copy()
    in_shards(folder, ("model.layers.", "model.norm"), ("model.embed", "model.mm_projector", "lm_head"))
    monkeypatch.setattr(os, "link", refuse)
    same_logits(folder)


@pytest.mark.parametrize("is_safetensors", [False, True])
def test_few_weights_are_in_memory_at_once(is_safetensors, checkpoint_copy, monkeypatch):
    folder = checkpoint_copy()
    if is_safetensors:
        in_shards(folder, ("model.", "lm_head"))
    largest = max(one.nbytes for name, one in iterate_weights(folder) if "mm_" not in name)
    sizes = []

    def count(shard, *arguments, **options):
        sizes.append(sum(tensor.nbytes for tensor in shard.values()))
        save_file(shard, *arguments, **options)

    monkeypatch.setattr(split, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(split, "save_file", count)
    same_logits(folder)
    assert len(sizes) > 5
    assert max(sizes) <= 20_000 + largest < sum(sizes)


def test_every_kind_of_checkpoint(base):  # noqa: F811
    projector = base.parent / "llava-tiny-pretrain"
    projector.mkdir()
    shutil.copy(TINY_LLAVA / "config.json", projector)
    weights = {name: one for name, one in iterate_weights(TINY_LLAVA) if "mm_projector" in name}
    torch.save(weights, projector / "mm_projector.bin")
    first = same_logits(projector, str(base))

    adapter = base.parent / "llava-tiny-lora"
    lora = write_lora(adapter)
    trained = {name: one.clone() for name, one in lora.state_dict().items() if "mm_projector" in name}
    torch.save(trained, adapter / "non_lora_trainables.bin")
    second = same_logits(adapter, str(base))
    written = [dict(iterate_weights(folder)) for folder in (first, second)]
    assert written[0].keys() == written[1].keys()
    assert any(not torch.equal(written[0][name], written[1][name]) for name in written[0])


def test_added_tokens_have_their_rows(checkpoint_copy):
    folder = checkpoint_copy(mm_use_im_patch_token=True, mm_use_im_start_end=True)
    stored = json.loads((folder / "config.json").read_text())["vocab_size"]
    target = same_logits(folder)
    assert json.loads((target / "config.json").read_text())["vocab_size"] == stored + 3


def test_a_checkpoint_is_split_once_and_anew_when_it_has_changed(checkpoint_copy, cache, caplog):
    folder = checkpoint_copy()
    first = split_of(folder)
    assert split_of(folder) == first
    assert caplog.text.count("is written to") == 1
    weights = dict(iterate_weights(folder))
    weights["lm_head.weight"] *= 2
    torch.save(weights, folder / "pytorch_model.bin")
    second = same_logits(folder)
    assert second != first
    assert {path.name for path in cache.iterdir()} == {first.name, second.name}


def test_what_a_killed_process_left_is_not_taken_for_a_model(checkpoint_copy, cache):
    (cache / "partial").mkdir(parents=True)
    (cache / "partial" / "model-00001.safetensors").write_bytes(b"half")
    target = same_logits(checkpoint_copy())
    assert [path.name for path in cache.iterdir()] == [target.name]


PROGRAM = """
import sys
import torch
from llava.model import split
finish = split._Writer.finish
split._Writer.finish = lambda *arguments: (print("writes"), finish(*arguments))
print("has", split.split_language_model(sys.argv[1], None, 1600, torch.float32).name)
"""


def test_two_processes_at_once_write_one(checkpoint_copy, cache):
    command = [sys.executable, "-c", PROGRAM, str(checkpoint_copy())]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    lines = [line for process in both for line in process.communicate(timeout=120)[0].split("\n")]
    (folder,) = cache.iterdir()
    assert [process.returncode for process in both] == [0, 0]
    assert lines.count("writes") == 1
    assert lines.count(f"has {folder.name}") == 2


def test_a_cache_that_cannot_be_written_is_one_sentence(checkpoint_copy, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAVA_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"could not be written to .*; LLAVA_CACHE names another place"):
        split_of(checkpoint_copy())


def test_a_checkpoint_that_does_not_fit_its_config_is_refused(checkpoint_copy, cache):
    folder = checkpoint_copy(intermediate_size=48)
    with pytest.raises(UserError, match="does not fit the config"):
        split_of(folder)
    assert [path.name for path in cache.iterdir()] == ["partial"]


def test_the_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LLAVA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/llava"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(cache_folder()) == "/home/somebody/.cache/llava"
