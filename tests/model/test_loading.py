"""Every kind of checkpoint, told apart by its files; every mistake one sentence."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from llava.errors import MissingFileError, UserError
from llava.model.builder import load_pretrained_model
from llava.model.checkpoint_files import (
    CheckpointKind,
    checkpoint_kind,
    iterate_weights,
    read_tensors,
    resolve_folder,
)
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.loading import load_checkpoint
from llava.model.placement import Placement, parse_device, parse_dtype
from tests.conftest import TINY_CLIP, TINY_CLIP_SIZES, TINY_LLAVA

IDS = torch.tensor([[1, 313, 746, -200, 1577, 1527]])
PIXELS = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))


def load(folder, base=None, **options):
    options = {"device": "cpu", **options}
    return load_pretrained_model(str(folder), None if base is None else str(base), "any name", **options)


def logits(model):
    with torch.no_grad():
        return model(IDS, images=PIXELS, texts="what?").logits


def weights_of(folder):
    return dict(iterate_weights(Path(folder)))


@pytest.fixture
def base(checkpoint_copy):
    """The tiny language model without projector, beside its CLIP, as Vicuna would be."""
    folder = checkpoint_copy()
    base = folder.parent / "vicuna-tiny"
    shutil.copytree(folder, base)
    weights = {name: tensor for name, tensor in weights_of(folder).items() if "mm_projector" not in name}
    torch.save(weights, base / "pytorch_model.bin")
    config = json.loads((base / "config.json").read_text())
    language = {name: value for name, value in config.items() if not name.startswith("mm_")}
    (base / "config.json").write_text(json.dumps({**language, "model_type": "llama"}))
    return base


def test_an_environment_variable_turns_trim_on_and_says_so(checkpoint_copy, monkeypatch, caplog):
    folder = checkpoint_copy(mm_vision_token_reduce_func="TRIM:4")
    monkeypatch.setenv("LLAVA_TOKEN_REDUCTION", "TRIM:9")
    model = load(folder)[1]
    assert model.config.mm_vision_token_reduce_func == "TRIM:9"
    assert model.get_vision_tower().select(PIXELS, "what?").counts == (10,)
    assert f"LLAVA_TOKEN_REDUCTION=TRIM:9 is in force, not TRIM:4 of {folder}" in caplog.text
    assert load(folder, token_reduction="none")[1].get_vision_tower()(PIXELS).shape[1] == 576
    monkeypatch.setenv("LLAVA_TOKEN_REDUCTION", "TRIM")
    with pytest.raises(UserError, match="LLAVA_TOKEN_REDUCTION: 'TRIM' is not a token reduction"):
        load(folder)


def test_the_environment_says_nothing_about_a_language_model(base, monkeypatch):
    monkeypatch.setenv("LLAVA_TOKEN_REDUCTION", "TRIM:9")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "mm_vision_tower": None}))
    assert load(base)[1].get_vision_tower() is None


def test_weights_that_fit_nowhere_stay_on_disk(checkpoint_copy, loaded, tmp_path):
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", "model.mm_projector"]
    places = dict.fromkeys([*parts, "model.vision_tower"], "cpu")
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    placement = Placement(
        parse_device("cpu"), torch.float32, device_map=places, offload_folder=tmp_path / "weights"
    )
    model = load_checkpoint(TINY_LLAVA, None, placement).model
    assert any((tmp_path / "weights").iterdir())
    assert model.model.layers[1].mlp.up_proj.weight.is_meta
    assert torch.equal(logits(model), logits(loaded[1]))


def test_what_llava_passes_on_to_transformers_is_accepted(loaded, monkeypatch, tmp_path):
    from llava.model import checkpoint_files

    asked = []

    def fetch(hub_id, **settings):
        asked.append((hub_id, settings["revision"], settings["cache_dir"]))
        return str(TINY_LLAVA)

    def describe(hub, hub_id, revision, timeout):
        asked.append((hub_id, revision))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename="config.json")])

    monkeypatch.setattr(checkpoint_files, "snapshot_download", fetch)
    monkeypatch.setattr(checkpoint_files.HfApi, "model_info", describe)
    settings = {"revision": "v2", "cache_dir": tmp_path, "max_memory": {"cpu": "1GiB"}}
    model = load("somebody/llava", offload_folder=tmp_path, low_cpu_mem_usage=True, **settings)[1]
    assert asked == [("somebody/llava", "v2"), ("somebody/llava", "v2", tmp_path)]
    assert torch.equal(logits(model), logits(loaded[1]))
    with pytest.raises(TypeError, match="nonsense"):
        load(TINY_LLAVA, nonsense=1)


def test_the_config_line_alone_turns_trim_on(checkpoint_copy):
    folder = checkpoint_copy(mm_vision_token_reduce_func="TRIM:-1")
    model = load(folder)[1]
    counts = model.get_vision_tower().select(PIXELS, ["what?"]).counts
    assert counts[0] < 576
    assert logits(model).shape[1] == IDS.shape[1] - 1 + counts[0]


def test_token_reduction_overrides_the_config(checkpoint_copy):
    folder = checkpoint_copy(mm_vision_token_reduce_func="TRIM:-1")
    assert logits(load(folder, token_reduction="none")[1]).shape[1] == IDS.shape[1] - 1 + 576
    assert logits(load(folder, token_reduction="TRIM:64")[1]).shape[1] == IDS.shape[1] - 1 + 65


def test_no_reduction_is_saved_as_the_published_loader_reads_it(checkpoint_copy, tmp_path):
    model = load(checkpoint_copy(mm_vision_token_reduce_func="none"))[1]
    for setting, saved in (("none", None), ("TRIM:-1", "TRIM:-1")):
        model.set_token_reduction(setting)
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["mm_vision_token_reduce_func"] == saved


def test_a_bad_reduction_in_the_config_is_refused_when_it_is_read(checkpoint_copy):
    with pytest.raises(UserError, match="accepted"):
        load(checkpoint_copy(mm_vision_token_reduce_func="TRIM:0"))


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_both_model_types_load(model_type, checkpoint_copy, loaded):
    model = load(checkpoint_copy(model_type=model_type))[1]
    assert torch.equal(logits(model), logits(loaded[1]))


def test_shards_and_safetensors_load_alike(checkpoint_copy, loaded):
    folder = checkpoint_copy()
    model = load(folder)[1]
    (folder / "pytorch_model.bin").unlink()
    model.save_pretrained(folder / "saved", max_shard_size="300KB")
    modes = {path.stat().st_mode for path in (folder / "saved").iterdir()}
    assert len(modes) == 1  # whoever may read the config may read the weights
    assert (folder / "saved" / "model.safetensors.index.json").is_file()
    shutil.copy(folder / "tokenizer.model", folder / "saved")
    shutil.copy(folder / "tokenizer_config.json", folder / "saved")
    assert torch.equal(logits(load(folder / "saved")[1]), logits(loaded[1]))


def test_a_tower_that_a_checkpoint_trained_is_not_replaced_by_clips(checkpoint_copy):
    folder = checkpoint_copy(unfreeze_mm_vision_tower=True, mm_vision_tower=str(TINY_CLIP))
    model = LlavaLlamaForCausalLM.from_pretrained(folder).eval()
    with pytest.raises(UserError, match="is not loaded yet"):
        model.save_pretrained(folder.parent / "saved")
    model.get_vision_tower().load_model()
    with pytest.raises(UserError, match="trained its vision tower, and that of CLIP is loaded"):
        logits(model)


def test_saving_changes_nothing_of_how_a_model_answers(checkpoint_copy, tmp_path):
    tokenizer, model, *_ = load(checkpoint_copy())
    model.generation_config = GenerationConfig(temperature=0.9, top_p=0.6, top_k=40, length_penalty=2.0)
    before = model.generation_config.to_dict()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert model.generation_config.to_dict() == before
    saved = GenerationConfig.from_pretrained(tmp_path / "saved")
    assert (saved.do_sample or False, saved.temperature, saved.top_k) == (False, None, None)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.9)
    model.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").temperature == 0.9


def test_quantized_weights_are_not_saved(tmp_path):
    with pytest.raises(UserError, match="8-bit and 4-bit weights cannot be saved"):
        load(TINY_LLAVA, load_4bit=True)[1].save_pretrained(tmp_path / "saved")


def test_a_saved_model_finds_its_vision_tower_from_anywhere(checkpoint_copy, loaded, tmp_path):
    folder = checkpoint_copy()
    tokenizer, model, *_ = load(folder)
    name = model.config.mm_vision_tower
    assert not Path(name).is_absolute()
    places = {folder.parent / "beside": name, tmp_path / "far" / "away": str(folder.parent / name)}
    for place, expected in places.items():
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        stored = load_file(place / "model.safetensors")
        assert not any("vision_tower" in weight for weight in stored)
        _, again, *_ = load(place)
        assert again.config.mm_vision_tower == expected
        assert torch.equal(logits(again), logits(loaded[1]))


def test_bin_shards_load(checkpoint_copy, loaded):
    folder = checkpoint_copy()
    weights = weights_of(folder)
    names = sorted(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for shard, own in shards.items():
        torch.save({name: weights[name] for name in own}, folder / shard)
    weight_map = {name: shard for shard, own in shards.items() for name in own}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    )
    (folder / "pytorch_model.bin").unlink()
    assert torch.equal(logits(load(folder)[1]), logits(loaded[1]))


def test_projector_only_with_base(checkpoint_copy, base, loaded):
    folder = base.parent / "llava-tiny-pretrain"
    folder.mkdir()
    shutil.copy(TINY_LLAVA / "config.json", folder)
    projector = {
        f"any.prefix.{name}": tensor
        for name, tensor in weights_of(TINY_LLAVA).items()
        if "mm_projector" in name
    }
    torch.save(projector, folder / "mm_projector.bin")
    assert checkpoint_kind(folder) is CheckpointKind.PROJECTOR
    assert torch.equal(logits(load(folder, base)[1]), logits(loaded[1]))
    with pytest.raises(UserError, match="--model-base"):
        load(folder)
    torch.save({name: tensor[:3] for name, tensor in projector.items()}, folder / "mm_projector.bin")
    with pytest.raises(UserError, match="does not fit the config: model.mm_projector"):
        load(folder, base)


def write_lora(folder, of=TINY_LLAVA):
    """Write a random adapter of a checkpoint into a folder beside it, without `non_lora_trainables.bin`."""
    from peft import LoraConfig, get_peft_model

    layers = r"model\.layers\.\d+\.self_attn\.[qv]_proj"
    lora = get_peft_model(load(of)[1], LoraConfig(r=4, target_modules=layers, init_lora_weights=False))
    lora.save_pretrained(folder)
    shutil.copy(of / "config.json", folder)
    return lora


def test_lora_with_base(checkpoint_copy, base, loaded):
    folder = base.parent / "llava-tiny-lora"
    lora = write_lora(folder)
    trained = {name: tensor.clone() for name, tensor in lora.state_dict().items() if "mm_projector" in name}
    # What a published TRIM run stores besides, its frozen CLIP; rounded, it must not replace CLIP's own.
    clip = load_file(TINY_CLIP / "model.safetensors")["visual_projection.weight"]
    stored = "base_model.model.model.vision_tower.vision_tower.visual_projection.weight"
    trained[stored] = clip.bfloat16().float()
    torch.save(trained, folder / "non_lora_trainables.bin")
    assert checkpoint_kind(folder) is CheckpointKind.LORA
    with torch.no_grad():
        expected = logits(lora.base_model.model)
    merged = load(folder, base, token_reduction="TRIM:-1")[1]
    merged.set_token_reduction("none")
    # Worst difference seen: 4e-7; merging adds the adapter to the weights before the product.
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, logits(loaded[1]), atol=1e-3)
    assert torch.equal(merged.get_vision_tower().vision_tower.visual_projection.weight, clip)

    nothing = {"base_model.model.model.nothing.weight": torch.ones(1)}
    torch.save(trained | nothing, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match="no part of the model: model.nothing.weight"):
        load(folder, base)


@pytest.mark.parametrize("bits", ["load_4bit", "load_8bit"])
def test_quantized_models_answer_close_to_the_whole_one(bits, loaded, caplog):
    model = load(TINY_LLAVA, **{bits: True})[1]
    assert model.model.layers[0].self_attn.q_proj.weight.dtype in (torch.uint8, torch.int8)
    assert model.model.mm_projector[0].weight.dtype is torch.float32
    expected, found = logits(loaded[1]), logits(model)
    likeness = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert likeness > 0.95
    assert [record.message for record in caplog.records if record.name.startswith("bitsandbytes")] == []


def test_both_quantizations_at_once_are_refused():
    with pytest.raises(UserError, match="choose one"):
        load(TINY_LLAVA, load_4bit=True, load_8bit=True)


def test_the_tower_may_lie_beside_the_checkpoint_or_anywhere(checkpoint_copy, loaded, tmp_path):
    folder = checkpoint_copy()
    assert torch.equal(logits(load(folder)[1]), logits(loaded[1]))
    elsewhere = shutil.move(folder.parent / TINY_CLIP.name, tmp_path / "eyes")
    with pytest.raises(MissingFileError, match=f"'{TINY_CLIP.name}'.*--vision-tower"):
        load(folder)
    assert torch.equal(logits(load(folder, vision_tower=str(elsewhere))[1]), logits(loaded[1]))


def test_an_authors_local_tower_folder_is_replaced(checkpoint_copy):
    folder = checkpoint_copy(mm_vision_tower="/mnt/authors/clip-vit-large-patch14-336")
    with pytest.raises(MissingFileError, match=r"/mnt/authors/clip-vit-large-patch14-336.*--vision-tower"):
        load(folder)
    model = load(folder, vision_tower=str(TINY_CLIP))[1]
    assert model.config.mm_vision_tower == str(TINY_CLIP)


def test_tower_weights_of_a_checkpoint_count_if_they_are_no_copy_of_clips(checkpoint_copy, loaded, caplog):
    folder = checkpoint_copy(mm_vision_tower=str(TINY_CLIP))
    weights = weights_of(folder)
    prefix = "model.vision_tower.vision_tower.vision_model."  # the keys of older transformers
    clip = load_file(TINY_CLIP / "model.safetensors")
    vision = {name: tensor for name, tensor in clip.items() if name.startswith("vision_model.")}

    def store(change):
        more = {prefix + name.removeprefix("vision_model."): change(one) for name, one in vision.items()}
        torch.save(weights | more, folder / "pytorch_model.bin")

    # As LLaVA-1.5's own checkpoints do: trained in bfloat16 with a frozen CLIP, stored in float16.
    store(lambda tensor: tensor.bfloat16().half())
    assert torch.equal(logits(load(folder)[1]), logits(loaded[1]))
    store(lambda tensor: tensor[:0])  # what a run that splits weights leaves of those it does not train
    assert torch.equal(logits(load(folder)[1]), logits(loaded[1]))
    assert "vision tower" not in caplog.text

    store(lambda tensor: tensor * 0.5)
    tower = load(folder)[1].get_vision_tower()
    trained = tower.vision_tower.vision_model.post_layernorm.weight
    assert torch.equal(trained, clip["vision_model.post_layernorm.weight"] * 0.5)
    assert "stores a vision tower unlike that of" in caplog.text

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "unfreeze_mm_vision_tower": True}))
    tower = load(folder)[1].get_vision_tower()
    trained = tower.vision_tower.vision_model.post_layernorm.weight
    assert torch.equal(trained, clip["vision_model.post_layernorm.weight"] * 0.5)


def test_the_image_patch_token_is_added_where_the_config_is_silent(checkpoint_copy):
    folder = checkpoint_copy()
    config = json.loads((folder / "config.json").read_text())
    del config["mm_use_im_patch_token"]
    (folder / "config.json").write_text(json.dumps({**config, "mm_use_im_start_end": True}))
    tokenizer, model, _, _ = load(folder)
    assert [tokenizer.decode([id_]) for id_ in (1600, 1601, 1602)] == ["<im_patch>", "<im_start>", "<im_end>"]
    assert model.get_input_embeddings().num_embeddings == model.lm_head.out_features == 1603


def test_defaults_of_a_machine_without_accelerator():
    """`device="cuda"` and `device_map="auto"` are what LLaVA's callers say without thinking of it."""
    tokenizer, model, processor, context = load_pretrained_model(str(TINY_LLAVA), None, "tiny")
    expected = torch.float16 if torch.cuda.is_available() else torch.float32
    assert model.dtype is expected
    assert context == 2048
    assert processor.crop_size["height"] == 336
    assert tokenizer.bos_token_id == 1


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="torch_type"):
        load(TINY_LLAVA, torch_type="float16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu0"}, "'gpu0' is not on this machine; accepted here: cpu"),
        ({"dtype": "int3"}, "'int3'.*accepted: float32"),
        ({"token_reduction": "TRIM:0"}, "accepted: 'none'"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(UserError, match=message):
        load(TINY_LLAVA, **options)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(MissingFileError, match="/nowhere"):
        load("/nowhere")
    with pytest.raises(MissingFileError, match="has no weights"):
        shutil.copy(TINY_LLAVA / "config.json", tmp_path)
        load(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="not valid JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}')
    with pytest.raises(UserError, match="'qwen'"):
        load(tmp_path)


def test_a_hub_id_while_offline():
    with pytest.raises(MissingFileError, match="'nobody/no-such-model'.*could not be fetched"):
        load("nobody/no-such-model")


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint_copy):
    folder = checkpoint_copy()
    weights = weights_of(folder)
    del weights["model.layers.1.mlp.up_proj.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"lacks 1 weights.*model.layers.1.mlp.up_proj.weight"):
        load(folder)


def test_a_full_checkpoint_without_its_projector_is_refused(checkpoint_copy):
    folder = checkpoint_copy()
    weights = {name: value for name, value in weights_of(folder).items() if "mm_projector" not in name}
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"lacks 4 weights.*mm_projector"):
        load(folder)


def test_a_truncated_weight_file_is_one_sentence(checkpoint_copy):
    folder = checkpoint_copy()
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="could not be read"):
        load(folder)


class Harmful:
    """What a stranger's pickle may hold."""

    def __reduce__(self):
        return (print, ("harmful code ran",))


def test_a_pickle_with_code_is_refused_and_does_not_run(checkpoint_copy, capsys):
    folder = checkpoint_copy()
    torch.save({"model.norm.weight": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be read"):
        load(folder)
    with pytest.raises(UserError, match="could not be read"):
        read_tensors(folder / "pytorch_model.bin")
    assert "harmful" not in capsys.readouterr().out


def test_a_folder_may_be_named_relative_to_the_checkpoint(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert resolve_folder("b", beside=tmp_path / "a") == tmp_path / "b"
    assert resolve_folder(str(tmp_path / "b")) == tmp_path / "b"


def test_a_truncated_safetensors_file_is_one_sentence(checkpoint_copy):
    folder = checkpoint_copy(mm_vision_tower=str(TINY_CLIP))
    weights = weights_of(folder)
    (folder / "pytorch_model.bin").unlink()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert torch.isfinite(logits(load(folder)[1])).all()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(UserError, match="could not be read"):
        load(folder)


def test_defaults_of_types():
    assert parse_dtype(None, torch.device("cpu")) is torch.float32
    assert parse_dtype(None, torch.device("cuda")) is torch.float16
    assert parse_dtype("bf16", torch.device("cpu")) is torch.bfloat16


def test_devices_are_those_of_this_machine(monkeypatch):
    assert parse_device("cpu") == torch.device("cpu")
    assert parse_device("cpu:0") == torch.device("cpu:0")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *_, device: device)
    assert parse_device("cuda") == torch.device("cuda")
    assert parse_device(torch.device("cuda:1")) == torch.device("cuda:1")
    for absent in ("cuda:2", "mps", "xpu:0", "meta", "hpu", "vulkan", "nonsense", "cuda:-1", "", "x" * 5000):
        with pytest.raises(
            UserError, match="not on this machine; accepted here: cpu, cuda:0, cuda:1$"
        ) as told:
            parse_device(absent)
        assert len(str(told.value)) < 200


def test_a_device_that_gives_no_memory_is_one_sentence(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("all CUDA-capable devices are busy\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UserError, match="^device 'cpu' cannot be used: all CUDA-capable devices are busy$"):
        parse_device("cpu")


def test_a_projector_trained_with_an_image_patch_token_loads_over_a_base_without_it(checkpoint_copy, base):
    """`mm_use_im_patch_token` is true by default, so stage 1 writes a vocabulary of one token more."""
    folder = base.parent / "llava-tiny-pretrain"
    folder.mkdir()
    config = json.loads((TINY_LLAVA / "config.json").read_text())
    config |= {"vocab_size": 1603, "mm_use_im_patch_token": True, "mm_use_im_start_end": True}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor for name, tensor in weights_of(TINY_LLAVA).items() if "mm_projector" in name}
    new_rows = torch.stack([torch.full((64,), 2.0), torch.full((64,), 3.0)])
    torch.save({**weights, "model.embed_tokens.weight": new_rows}, folder / "mm_projector.bin")
    tokenizer, model, _, _ = load(folder, base)
    assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 1603
    assert torch.equal(model.get_input_embeddings().weight[-2:], new_rows)


def test_a_lora_checkpoint_without_any_projector_is_refused(checkpoint_copy, base):
    folder = base.parent / "llava-tiny-lora"
    write_lora(folder)
    torch.save({}, folder / "non_lora_trainables.bin")
    with pytest.raises(UserError, match=r"lacks 4 weights.*mm_projector"):
        load(folder, base)


def test_an_adapter_over_a_base_that_trained_its_tower_keeps_that_tower(checkpoint_copy):
    folder = checkpoint_copy(unfreeze_mm_vision_tower=True)
    clip = load_file(TINY_CLIP / "model.safetensors")
    trained = {
        f"model.vision_tower.vision_tower.{name}": tensor * 0.5
        for name, tensor in clip.items()
        if name.startswith("vision_model.")
    }
    torch.save({**weights_of(folder), **trained}, folder / "pytorch_model.bin")
    adapter = folder.parent / "llava-tiny-lora"
    write_lora(adapter, of=folder)
    torch.save({}, adapter / "non_lora_trainables.bin")
    norm = load(adapter, folder)[1].get_vision_tower().vision_tower.vision_model.post_layernorm.weight
    assert torch.equal(norm, clip["vision_model.post_layernorm.weight"] * 0.5)


def test_a_clip_of_another_width_is_refused_with_both_numbers(tmp_path):
    from llava.bench.random_clip import write_random_clip

    with pytest.raises(UserError, match="width 32.*takes 48"):
        load(TINY_LLAVA, vision_tower=str(write_random_clip(tmp_path / "clip", TINY_CLIP_SIZES)))


def test_a_clip_without_its_vocabulary_is_refused(checkpoint_copy):
    """transformers would make a tokenizer to which all questions are the same."""
    folder = checkpoint_copy(mm_vision_token_reduce_func="TRIM:-1")
    (folder.parent / TINY_CLIP.name / "vocab.json").unlink()
    with pytest.raises(MissingFileError, match=r"no vocab\.json"):
        load(folder)


def test_a_clip_without_its_preprocessor_is_refused(checkpoint_copy):
    folder = checkpoint_copy()
    (folder.parent / TINY_CLIP.name / "preprocessor_config.json").unlink()
    with pytest.raises(MissingFileError, match=r"no preprocessor_config\.json"):
        load(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}', "lacks 1 of 1 shards"),
        ("{", "not valid JSON"),
        ("{}", "no weight_map"),
    ],
)
def test_an_interrupted_download_is_one_sentence(index, message, checkpoint_copy):
    folder = checkpoint_copy()
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_an_empty_weight_file_is_one_sentence(checkpoint_copy):
    folder = checkpoint_copy()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="could not be read"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "abc"}, "is not a valid Llama config"),
        ({"mm_hidden_size": None}, "lacks a whole number mm_hidden_size"),
        ({"mm_vision_select_layer": None}, "lacks a whole number mm_vision_select_layer"),
        ({"mm_vision_tower": None, "mm_vision_token_reduce_func": "TRIM:-1"}, "needs a vision tower"),
    ],
)
def test_a_config_that_makes_no_sense_is_one_sentence(change, message, checkpoint_copy):
    with pytest.raises(UserError, match=message):
        load(checkpoint_copy(**change))


def test_a_map_for_accelerators_means_nothing_on_a_cpu():
    model = load(TINY_LLAVA, device="cpu", device_map={"": 0})[1]
    assert model.device == torch.device("cpu")


def test_weights_that_accelerate_keeps_elsewhere_fetch_their_inputs(loaded):
    from accelerate import cpu_offload

    model = load(TINY_LLAVA)[1]
    cpu_offload(model.get_model().mm_projector, execution_device=torch.device("cpu"))
    cpu_offload(model.get_model().embed_tokens, execution_device=torch.device("cpu"))
    assert model.get_model().mm_projector[0].weight.is_meta
    assert model.input_device == torch.device("cpu")
    assert torch.equal(logits(model), logits(loaded[1]))


def test_what_the_user_names_is_where_the_user_is(checkpoint_copy, tmp_path, monkeypatch):
    """A folder beside the checkpoint is what its config means; `--vision-tower clip` means ./clip."""
    folder = checkpoint_copy()
    elsewhere = tmp_path / "work"
    shutil.copytree(TINY_CLIP, elsewhere / TINY_CLIP.name)
    (folder.parent / TINY_CLIP.name / "config.json").write_text("{}")
    monkeypatch.chdir(elsewhere)
    assert load(folder, vision_tower=TINY_CLIP.name)[1].get_vision_tower().folder == Path(TINY_CLIP.name)


def test_a_model_that_would_not_fit_is_one_sentence():
    """Where `auto` finds no room left, accelerate puts layers on the disk."""
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "model.mm_projector", "lm_head"]
    layers = {f"model.layers.{index}": "disk" if index else "cpu" for index in range(3)}
    device_map = dict.fromkeys(parts, "cpu") | layers
    with pytest.raises(UserError, match="do not fit into the memory .*--load-4bit"):
        load_checkpoint(str(TINY_LLAVA), None, Placement(torch.device("cpu"), torch.float32, device_map))
