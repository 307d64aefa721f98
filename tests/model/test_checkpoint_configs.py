"""Of a stranger's settings only known keys with values of known kinds reach a library."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from llava.assistant import SHAPES_CHECKPOINT
from llava.errors import UserError
from llava.model.checkpoint_configs import are_pinpoints, read_clip_configs, read_generation_config
from llava.tokenizer import LlamaTokenizer, load_tokenizer
from tests.conftest import TINY_CLIP, TINY_LLAVA
from tests.model.test_loading import load, logits

CODE = """
from pathlib import Path
Path({marker!r}).write_text("ran")
class Stolen: ...
"""
AUTO_MAP = dict.fromkeys(
    ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor"), "stolen.Stolen"
) | {"AutoTokenizer": ["stolen.Stolen", "stolen.Stolen"]}


def edit(path: Path, **changes: object) -> None:
    """Change keys of a JSON file, which is made if it is missing."""
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**values, **changes}))


def test_code_and_kernels_that_configs_name_are_never_looked_for(
    checkpoint_copy, loaded, tmp_path, monkeypatch
):
    folder = checkpoint_copy(
        auto_map=AUTO_MAP,
        attn_implementation="someone/kernel",
        _attn_implementation="someone/kernel",
        use_kernels=True,
        kernel_config={"Linear": "someone/kernel:Layer"},
        transformers_weights="../other.safetensors",
        fusion_config={"patch_embeddings": True},
        mm_vision_token_reduce_func="TRIM:-1",
    )
    clip, marker = folder.parent / TINY_CLIP.name, tmp_path / "marker"
    for place in (folder, clip, tmp_path):
        (place / "stolen.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    halves = json.loads((clip / "config.json").read_text())
    kernel = {"attn_implementation": "someone/kernel", "_attn_implementation_internal": "someone/kernel"}
    edit(
        clip / "config.json",
        auto_map=AUTO_MAP,
        vision_config={**halves["vision_config"], **kernel, "quantization_config": {"quant_method": "quark"}},
        text_config={**halves["text_config"], **kernel},
        **kernel,
    )
    edit(clip / "preprocessor_config.json", auto_map=AUTO_MAP, image_processor_type="stolen.Stolen")
    edit(clip / "tokenizer_config.json", auto_map=AUTO_MAP, tokenizer_class="Stolen")
    edit(folder / "tokenizer_config.json", auto_map=AUTO_MAP, chat_template="{{ 0 / 0 }}")
    edit(
        folder / "generation_config.json", cache_implementation="stolen", compile_config={"backend": "stolen"}
    )

    model = load(folder)[1]
    tower = model.get_vision_tower()
    assert tower.encode_texts(["what?"]).isfinite().all()
    model.set_token_reduction("none")
    assert torch.equal(logits(model), logits(loaded[1]))
    assert tower.vision_tower.config._attn_implementation == "sdpa"
    assert tower.text_tower.config._attn_implementation == "sdpa"
    assert model.generation_config.cache_implementation is None
    assert not hasattr(model.config, "auto_map")
    assert not marker.exists()


def test_weights_that_were_stored_quantized_are_refused(checkpoint_copy):
    config = {"quant_method": "custom", "modules_to_not_convert": ["a"]}
    with pytest.raises(UserError, match="quantization_config.*--load-4bit"):
        load(checkpoint_copy(quantization_config=config))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mm_use_im_start_end": "False"}, "mm_use_im_start_end is 'False'; accepted: true or false"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True; accepted: a whole number above 0"),
        ({"num_attention_heads": 0}, "accepted: a whole number above 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; accepted: a number"),
        ({"hidden_act": "someone/kernel"}, "hidden_act.*accepted: an activation function's name"),
        (
            {"rope_scaling": {"type": "stolen"}},
            r"\(rope_scaling\): type is 'stolen'; accepted: one of default",
        ),
        (
            {"rope_scaling": {"type": "linear", "module": "a"}},
            "rope_scaling has the key 'module'; accepted: rope_type",
        ),
        ({"eos_token_id": [2] * 65}, "eos_token_id.*a token id or a list"),
        ({"image_grid_pinpoints": [[10**6, 10**6]]}, "image_grid_pinpoints.*up to 4096"),
        ({"torch_dtype": "float99"}, "a dtype's name"),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(changes, reason, checkpoint_copy):
    with pytest.raises(UserError, match=rf"config\.json is not a valid Llama config.*{reason}"):
        load(checkpoint_copy(**changes))


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_every_scaling_of_positions_is_taken_over(kind, checkpoint_copy):
    scaling = {"type": kind, "factor": 2.0, "original_max_position_embeddings": 2048}
    if kind == "llama3":
        scaling |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = load(checkpoint_copy(rope_scaling=scaling))[1]
    assert model.config.rope_parameters["rope_type"] == kind
    assert model.config.rope_parameters["factor"] == 2.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size": {"shortest_edge": 10**6}}, "size is .*accepted: a number of pixels up to 4096"),
        ({"size": {"longest": 1}}, "size is .*accepted: a number of pixels"),
        ({"crop_size": 10**6}, "crop_size is 1000000"),
        ({"crop_size": {"height": 224, "width": 336}}, "makes images of 336 x 224 pixels.*sees 336 x 336"),
        ({"image_mean": [0.5]}, "image_mean.*three numbers"),
        ({"resample": 9}, "resample is 9"),
    ],
)
def test_an_image_processor_of_another_size_is_one_sentence(changes, reason, checkpoint_copy):
    folder = checkpoint_copy()
    edit(folder.parent / TINY_CLIP.name / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=reason):
        load(folder)


def test_what_old_clip_configs_say_twice_is_read_as_before(tmp_path):
    """In `openai/clip-vit-large-patch14-336` what ends in _dict wins, also over the top level."""
    config = json.loads((TINY_CLIP / "config.json").read_text())
    halves = {"text_config_dict": {**config["text_config"], "eos_token_id": 7}, "vision_config_dict": None}
    (tmp_path / "config.json").write_text(json.dumps({**config, **halves}))
    vision, text = read_clip_configs(tmp_path)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.projection_dim) == (48, 4, 24)
    assert (text.eos_token_id, text.hidden_size) == (7, 32)


def test_how_a_model_generates_comes_from_either_file(tmp_path):
    edit(tmp_path / "config.json", eos_token_id=[2, 3], temperature=0.5, auto_map={"a": "b"})
    assert read_generation_config(tmp_path).eos_token_id == [2, 3]
    edit(tmp_path / "generation_config.json", temperature=0.9, top_p=0.6, max_length=4096, pad_token_id=0)
    config = read_generation_config(tmp_path)
    assert (config.temperature, config.top_p, config.max_length, config.eos_token_id) == (
        0.9,
        0.6,
        4096,
        None,
    )
    edit(tmp_path / "generation_config.json", temperature="hot")
    with pytest.raises(UserError, match=r"generation_config\.json.*temperature is 'hot'"):
        read_generation_config(tmp_path)


@pytest.mark.parametrize(
    ("value", "accepted"),
    [
        ([[336, 672], [672, 336]], True),
        ("[[336, 672], (672, 336)]", True),
        ("__import__('os').system('true')", False),
        ("[" * 3000, False),
        ([[336, 10**6]], False),
        ([[336]], False),
        ([[336, 336]] * 65, False),
        ([], False),
        ([[0, 336]], False),
    ],
)
def test_resolutions_of_tiles(value, accepted):
    assert are_pinpoints(value) is accepted


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("tokenizer_config.json", {"bos_token": 3}, "bos_token is 3; accepted: a token"),
        ("tokenizer_config.json", {"bos_token": {"content": "a", "module": "b"}}, "accepted: a token"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {str(10**9): {"content": "a"}}},
            "a token for each id",
        ),
        ("special_tokens_map.json", {"unk_token": ["a"]}, "accepted: a token"),
        ("added_tokens.json", {"a": 10**9}, "accepted: a token's id"),
        ("added_tokens.json", {"a": "b"}, "accepted: a token's id"),
    ],
)
def test_settings_of_a_tokenizer_that_make_no_sense(file, changes, reason, checkpoint_copy):
    folder = checkpoint_copy()
    edit(folder / file, **changes)
    with pytest.raises(UserError, match=rf"{file} is not a valid file of a tokenizer: .*{reason}"):
        load_tokenizer(folder)


def test_a_tokenizer_reads_nothing_but_its_own_vocabulary(checkpoint_copy, tmp_path):
    """Paths of files stand among the settings that a tokenizer writes."""
    folder = checkpoint_copy()
    edit(
        folder / "tokenizer_config.json",
        vocab_file="/etc/passwd",
        tokenizer_file="/etc/passwd",
        name_or_path="/etc/passwd",
        sp_model_kwargs={"enable_sampling": True, "alpha": 0.1, "nbest_size": -1},
        init_inputs=["/etc/passwd"],
    )
    tokenizer, plain = load_tokenizer(folder), load_tokenizer(TINY_LLAVA)
    assert tokenizer("A red circle").input_ids == plain("A red circle").input_ids
    tokenizer.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def test_a_tokenizer_of_another_class_is_what_its_files_are(checkpoint_copy):
    folder = checkpoint_copy()
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    assert isinstance(load_tokenizer(folder), LlamaTokenizer)
    (folder / "tokenizer.json").write_text("{}")
    edit(
        folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer", word_tokenizer_type="mecab"
    )
    with pytest.raises(UserError, match="the tokenizer in .* is damaged"):
        load_tokenizer(folder)


@pytest.mark.parametrize("extra", [{}, {"image_token": "<image>"}, [], ["<a>"]])
def test_tokenizers_of_every_recent_version_load(extra, checkpoint_copy):
    folder = checkpoint_copy()
    edit(folder / "tokenizer_config.json", extra_special_tokens=extra, add_bos_token=None, legacy=None)
    assert load_tokenizer(folder)("Hi").input_ids == load_tokenizer(TINY_LLAVA)("Hi").input_ids


def test_a_clip_saved_by_transformers_5s_processor_loads(checkpoint_copy, loaded):
    folder = checkpoint_copy()
    clip = folder.parent / TINY_CLIP.name
    settings = json.loads((clip / "preprocessor_config.json").read_text())
    (clip / "preprocessor_config.json").unlink()
    edit(clip / "processor_config.json", image_processor=settings, processor_class="CLIPProcessor")
    assert torch.equal(logits(load(folder)[1]), logits(loaded[1]))


def test_null_means_the_default(checkpoint_copy, loaded):
    folder = checkpoint_copy(head_dim=None, num_key_value_heads=None, mm_use_im_start_end=None)
    clip = folder.parent / TINY_CLIP.name
    edit(clip / "preprocessor_config.json", size={"shortest_edge": 336, "height": None, "width": None})
    config = json.loads((clip / "config.json").read_text())
    edit(clip / "config.json", vision_config={**config["vision_config"], "layer_norm_eps": None})
    assert torch.equal(logits(load(folder)[1]), logits(loaded[1]))


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": {"type": "longrope"}},
        {"rope_scaling": {"type": "yarn", "factor": 2.0, "beta_fast": -1}},
        {"rope_theta": 10**400},
        {"vocab_size": 2**63},
        {"head_dim": 2**62},
        {"pad_token_id": 2**30},
        {"torch_dtype": "int8"},
        {"mm_vision_tower": "~nobody-of-this-name/clip"},
        {"mm_vision_tower": "x" * 300},
    ],
)
def test_settings_that_no_library_takes_are_one_sentence(changes, checkpoint_copy):
    try:
        load(checkpoint_copy(**changes))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert changes.keys() == {"pad_token_id"}  # means none


def test_a_tokenizer_with_many_fewer_tokens_than_embeddings_is_refused(checkpoint_copy):
    folder = checkpoint_copy()
    shutil.copy(SHAPES_CHECKPOINT / "tokenizer.model", folder)
    shutil.copy(SHAPES_CHECKPOINT / "tokenizer_config.json", folder)
    with pytest.raises(UserError, match="600 tokens and the model embeddings for 1,600, so it is another"):
        load(folder)


def test_embeddings_without_a_token_have_no_text(checkpoint_copy):
    tokenizer, model, *_ = load(checkpoint_copy())
    model.resize_token_embeddings(1664)
    assert (
        tokenizer.decode([1650, *tokenizer("a cat", add_special_tokens=False).input_ids]).strip() == "a cat"
    )
    assert tokenizer.decode([1650]) == ""


def test_a_tokenizer_with_more_tokens_than_there_are_embeddings_for_is_refused(checkpoint_copy):
    folder = checkpoint_copy()
    tokens = {str(1600 + i): {"content": f"<new{i}>"} for i in range(30_000)}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    edit(
        folder / "tokenizer_config.json",
        added_tokens_decoder={**settings["added_tokens_decoder"], **tokens},
    )
    with pytest.raises(UserError, match="31,600 tokens and the model embeddings for 1,600"):
        load(folder)
