"""Checkpoints broken by mutation, file by file and key by key: the right answer, or one sentence.

Everything happens in this process; a command prints such a sentence and exits with 2. The quick tests break
every file and every key, the slow ones in every way that there is here.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.errors import UserError
from llava.model.adapter import ADAPTER_KEYS, IRRELEVANT_KEYS
from llava.model.checkpoint_configs import (
    CLIP_KEYS,
    CLIP_TEXT_KEYS,
    CLIP_VISION_KEYS,
    GENERATION_KEYS,
    HALVES,
    IMAGE_PROCESSOR_KEYS,
    LANGUAGE_MODEL_KEYS,
    LLAVA_KEYS,
    ROPE_KEYS,
    TOKEN_FIELDS,
    TOKENIZER_KEYS,
)
from tests.conftest import GOLDEN, TINY_CLIP, TINY_LLAVA

MOST_SECONDS = 30
MOST_MEMORY = 2 * 2**30  # bytes above what was needed before
MOST_LETTERS = 600  # of a sentence

Path_ = tuple[str, ...]
"""Where a value is in a JSON file: keys of objects in objects."""


class Raw(str):
    """JSON that Python's own writer would not write."""

    __slots__ = ()


ABSENT = object()
DEEP = Raw("[" * 100_000 + "]" * 100_000)
NESTED = Raw('{"a":' * 900 + "1" + "}" * 900)
LONG_NUMBER = Raw("9" * 5000)
# Of no use to any key, whatever it means.
NONSENSE: tuple[Any, ...] = (
    {"a": {"b": []}},
    -1,
    float("nan"),
    Raw("1e999"),
    LONG_NUMBER,
    10**30,
    "x" * 5000,
    "a\0b",
    NESTED,
    [[1]],
)
SHARE = 6  # a key gets each sixth value
# What some keys may be.
POSSIBLE: tuple[Any, ...] = (
    ABSENT,
    None,
    True,
    0,
    1,
    2**31,
    0.5,
    "",
    "x",
    Raw('"\\ud800"'),
    [],
    [1],
    ["x"],
    {},
    DEEP,
)
# With another value of these a model answers otherwise, and may well be meant to.
MEANINGFUL = {
    *("mm_vision_token_reduce_func", "mm_vision_select_layer", "mm_vision_select_feature"),
    *("image_aspect_ratio", "rms_norm_eps", "rope_theta", "layer_norm_eps", "num_attention_heads"),
    *("factor", "attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"),
    *(
        "mscale",
        "mscale_all_dim",
        "short_factor",
        "long_factor",
        "original_max_position_embeddings",
        "rope_type",
    ),
    *(
        "bos_token",
        "eos_token",
        "unk_token",
        "add_bos_token",
        "add_eos_token",
        "legacy",
        "hidden_act",
        "resample",
    ),
    *(
        "do_center_crop",
        "do_normalize",
        "do_rescale",
        "do_resize",
        "image_mean",
        "image_std",
        "rescale_factor",
    ),
    *("lora_alpha", "use_rslora", "alpha_pattern", "fan_in_fan_out", "eos_token_id"),
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint to be broken, and whole again afterwards.

    Attributes:
        home: Holds all its folders.
        path: Its own folder.
        base: Of an adapter or a projector.
        answer: What it answers when it is whole.
    """

    home: Path
    path: Path
    base: Path | None
    answer: str = ""

    def ask(self) -> str:
        """Load it and ask a question."""
        base = None if self.base is None else str(self.base)
        assistant = Assistant.load(str(self.path), model_base=base, device="cpu")
        with Image.open(GOLDEN / "img0.png") as image:
            return assistant.answer("What is this? Say it.", image, Generation(max_new_tokens=4)).text

    def wrong(self, mutation: str, *, may_differ: bool = False) -> str | None:
        """Ask it, broken; return what is wrong with what comes of that, or None.

        Args:
            mutation: What was done to it, in words.
            may_differ: Whether another answer is right too.
        """
        started, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            answer = self.ask()
            found = (
                None if answer == self.answer or (may_differ and answer) else f"another answer: {answer!r}"
            )
        except UserError as error:
            sentence = str(error)
            found = (
                None if "\n" not in sentence and len(sentence) < MOST_LETTERS else f"not short: {sentence}"
            )
        except Exception as error:  # noqa: BLE001 - which is what this is about
            found = f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - started
        taken = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
        if seconds > MOST_SECONDS or taken > MOST_MEMORY:
            found = f"{seconds:.0f} s and {taken} bytes"
        return f"{mutation}: {found}" if found else None


def write_adapter(folder: Path) -> None:
    """Write a random adapter of the tiny checkpoint, as LLaVA's training does."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(3):
        for name in ("q_proj", "v_proj"):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(4, 64, generator=generator)
            weights[f"{prefix}.lora_B.weight"] = torch.randn(64, 4, generator=generator) * 0.1
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "../model"}))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A checkpoint of every kind, each with copies of its own of everything that it needs."""
    config = json.loads((TINY_LLAVA / "config.json").read_text()) | {"mm_vision_token_reduce_func": "TRIM:-1"}
    weights = torch.load(TINY_LLAVA / "pytorch_model.bin", weights_only=True)
    projector = {name: weight for name, weight in weights.items() if "mm_projector" in name}
    found = {}
    for kind in ("full", "sharded", "projector", "adapter"):
        home = tmp_path_factory.mktemp(kind)
        shutil.copytree(TINY_CLIP, home / TINY_CLIP.name)
        model = shutil.copytree(TINY_LLAVA, home / "model")
        (model / "config.json").write_text(json.dumps(config))
        path = model if kind in ("full", "sharded") else home / kind
        path.mkdir(exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
        if kind == "sharded":
            (path / "pytorch_model.bin").unlink()
            names = sorted(weights)
            files = {
                name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)
            }
            for file in set(files.values()):
                save_file(
                    {name: weights[name].contiguous() for name in names if files[name] == file}, path / file
                )
            (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
        if kind == "projector":
            torch.save(projector, path / "mm_projector.bin")
        if kind == "adapter":
            torch.save(
                {f"base_model.model.{name}": one for name, one in projector.items()},
                path / "non_lora_trainables.bin",
            )
            write_adapter(path)
        whole = Checkpoint(home, path, None if path == model else model)
        found[kind] = Checkpoint(home, path, whole.base, whole.ask())
    return found


def restore(path: Path, data: bytes | None) -> None:
    """Put a file's content in the place of whatever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()
    if data is not None:
        path.write_bytes(data)


def dumps(values: Any) -> str:
    """Write JSON with `Raw` values as they are, and without the absent ones."""
    if isinstance(values, dict):
        pairs = (f"{json.dumps(key)}: {dumps(value)}" for key, value in values.items() if value is not ABSENT)
        return f"{{{', '.join(pairs)}}}"
    return str(values) if isinstance(values, Raw) else json.dumps(values)


def changed(values: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    """Return a JSON object in which one value is another."""
    key, *rest = path
    inner = values.get(key)
    if rest:
        value = changed(inner if isinstance(inner, dict) else {}, tuple(rest), value)
    return {**values, key: value}


def break_keys(checkpoint: Checkpoint, file: Path, keys: Iterable[Path_], values: Iterable[Any]) -> list[str]:
    """Give keys of a JSON file values, one after the other; return what went wrong."""
    whole = file.read_bytes() if file.is_file() else None
    given = json.loads(whole or "{}")
    values, found = list(values), []
    for key in keys:
        for value in values:
            file.write_text(dumps(changed(given, key, value)))
            shown = "absent" if value is ABSENT else repr(value)[:40]
            may_differ = key[-1] in MEANINGFUL
            found.append(checkpoint.wrong(f"{file.name}: {'.'.join(key)} is {shown}", may_differ=may_differ))
    restore(file, whole)
    return [one for one in found if one]


def keys_of(*tables: Iterable[str], inside: Path_ = ()) -> list[Path_]:
    """Return where the keys of some tables are in a file."""
    return [(*inside, key) for key in dict.fromkeys(key for table in tables for key in table)]


TOKENIZER = keys_of(TOKENIZER_KEYS, ["sp_model_kwargs", "chat_template"]) + keys_of(
    TOKEN_FIELDS, inside=("added_tokens_decoder", "0")
)
JSON_FILES: dict[tuple[str, str], list[Path_]] = {
    ("full", "model/config.json"): [
        *keys_of(
            LANGUAGE_MODEL_KEYS, LLAVA_KEYS, ["model_type", "quantization_config", "text_config", "auto_map"]
        ),
        *keys_of(ROPE_KEYS, inside=("rope_scaling",)),
        *keys_of(ROPE_KEYS, inside=("rope_parameters",)),
    ],
    ("full", "model/generation_config.json"): keys_of(GENERATION_KEYS, ["cache_implementation"]),
    ("full", "model/tokenizer_config.json"): TOKENIZER,
    ("full", "model/special_tokens_map.json"): keys_of(TOKENIZER_KEYS),
    ("full", "model/added_tokens.json"): keys_of(["<new>", "<s>", ""]),
    ("full", f"{TINY_CLIP.name}/config.json"): [
        *keys_of(CLIP_KEYS, HALVES, ["model_type"]),
        *keys_of(CLIP_TEXT_KEYS, inside=("text_config",)),
        *keys_of(CLIP_VISION_KEYS, inside=("vision_config",)),
    ],
    ("full", f"{TINY_CLIP.name}/preprocessor_config.json"): [
        *keys_of(IMAGE_PROCESSOR_KEYS),
        *keys_of(["height", "width", "shortest_edge"], inside=("size",)),
    ],
    ("full", f"{TINY_CLIP.name}/tokenizer_config.json"): TOKENIZER,
    ("full", f"{TINY_CLIP.name}/vocab.json"): keys_of(["!", "<|endoftext|>", "new"]),
    ("sharded", "model/model.safetensors.index.json"): [
        ("weight_map",),
        ("metadata",),
        ("weight_map", "lm_head.weight"),
    ],
    ("projector", "projector/config.json"): keys_of(LLAVA_KEYS),
    ("adapter", "adapter/adapter_config.json"): keys_of(ADAPTER_KEYS, IRRELEVANT_KEYS, ["megatron_config"]),
    ("adapter", "adapter/config.json"): keys_of(LLAVA_KEYS),
}


@pytest.mark.parametrize(("kind", "file"), JSON_FILES, ids=[f"{kind}-{file}" for kind, file in JSON_FILES])
def test_a_value_that_no_key_may_have(kind, file, checkpoints):
    checkpoint = checkpoints[kind]
    # What says nothing to this program is right whatever it is.
    keys = [key for key in JSON_FILES[kind, file] if key[-1] not in IRRELEVANT_KEYS]
    assert break_keys(checkpoint, checkpoint.home / file, keys, NONSENSE[:1]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "file"), JSON_FILES, ids=[f"{kind}-{file}" for kind, file in JSON_FILES])
def test_every_key_with_values_of_its_own(kind, file, checkpoints):
    checkpoint, values, found = checkpoints[kind], NONSENSE + POSSIBLE, []
    for index, key in enumerate(JSON_FILES[kind, file]):
        # All of them with every key would take minutes.
        found += break_keys(checkpoint, checkpoint.home / file, [key], values[index % SHARE :: SHARE])
    assert found == []


def pickled(value: Any, **options: Any) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def contents(whole: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what may be in a file's place, with a name."""
    script, archive = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
    yield from {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "its beginning": whole[:8],
        "zeros": bytes(len(whole)),
        "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 5\n",
        "no UTF-8": b"\xff\xfe" + whole,
        "TorchScript": script.getvalue(),
        "a tar": archive.getvalue(),
        "a list of PyTorch's": pickled([1, 2]),
        "an old list of PyTorch's": pickled([1, 2], _use_new_zipfile_serialization=False),
        "numbers for names": pickled({1: torch.zeros(2)}),
        "no weights": pickled({}),
        "weights within": pickled({"state_dict": {"a": torch.zeros(2)}}),
        "sparse weights": pickled({"a": torch.zeros(3, 3).to_sparse()}),
        "weights without numbers": pickled({"a": torch.zeros(3, device="meta")}),
        "a pickle": pickle.dumps(Path("/")),
        "a JSON list": b"[]",
        "a JSON list of objects": b"[{}]",
        "an empty object": b"{}",
        "a number": b"3",
        "null": b"null",
        "deep JSON": DEEP.encode(),
        "an object with a long number": f'{{"a": {LONG_NUMBER}}}'.encode(),
    }.items()


FILES = [
    *(("full", f"model/{name}") for name in ("config.json", "pytorch_model.bin", "generation_config.json")),
    *(
        ("full", f"model/{name}")
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
    ),
    *(("full", f"{TINY_CLIP.name}/{name}") for name in ("config.json", "model.safetensors", "vocab.json")),
    *(("full", f"{TINY_CLIP.name}/{name}") for name in ("merges.txt", "preprocessor_config.json")),
    ("full", f"{TINY_CLIP.name}/tokenizer_config.json"),
    *(
        ("sharded", f"model/{name}")
        for name in ("model.safetensors.index.json", "model-00001-of-00002.safetensors")
    ),
    *(("projector", f"projector/{name}") for name in ("config.json", "mm_projector.bin")),
    *(
        ("adapter", f"adapter/{name}")
        for name in ("config.json", "adapter_config.json", "adapter_model.safetensors")
    ),
    ("adapter", "adapter/non_lora_trainables.bin"),
]


QUICK = ("half", "a list of PyTorch's", "a JSON list", "missing", "a folder", "a dangling link")


@pytest.mark.parametrize("chosen", [QUICK, pytest.param((), marks=pytest.mark.slow)], ids=["quick", "all"])
@pytest.mark.parametrize(("kind", "file"), FILES, ids=[f"{kind}-{file}" for kind, file in FILES])
def test_files_that_are_damaged_or_something_else(kind, file, chosen, checkpoints):
    checkpoint = checkpoints[kind]
    path, found = checkpoint.home / file, []
    whole = path.read_bytes()

    def check(name: str) -> None:
        if chosen and name not in chosen:
            return
        # Without any settings the usual ones hold, which are others.
        may_differ = name in ("missing", "an empty object") and path.name in (
            "tokenizer_config.json",
            "config.json",
        )
        found.append(checkpoint.wrong(f"{path.name}: {name}", may_differ=may_differ))

    for name, content in contents(whole):
        restore(path, content)
        check(name)
    restore(path, None)
    check("missing")
    for name, make in {
        "a folder": path.mkdir,
        "a dangling link": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path.name),
        "a link out of the checkpoint": lambda: path.symlink_to("/etc/hostname"),
        "a pipe": lambda: os.mkfifo(path),
    }.items():
        make()
        check(name)
        restore(path, None)
    restore(path, whole)
    assert [one for one in found if one] == []


def tensors_like(weight: torch.Tensor) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield what may be in a weight's place, with a name."""
    yield "missing", None
    yield "a number", torch.zeros(())
    yield "nothing", torch.zeros(0)
    yield "wider", torch.cat([weight, weight], dim=-1)
    yield "shorter", weight[:-1]
    yield "flat", weight.flatten()[:-1]
    yield "deeper", weight[None]
    yield "whole numbers", weight.long()
    yield "truths", weight.bool()
    yield "not a number", weight * float("nan")


WEIGHTS = {
    ("full", "model/pytorch_model.bin"): [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.mm_projector.2.bias",
    ],
    ("full", f"{TINY_CLIP.name}/model.safetensors"): [
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "vision_model.post_layernorm.weight",
        "visual_projection.weight",
        "text_model.embeddings.position_embedding.weight",
        "text_projection.weight",
    ],
    ("projector", "projector/mm_projector.bin"): ["model.mm_projector.0.weight", "model.mm_projector.2.bias"],
    ("adapter", "adapter/adapter_model.safetensors"): [
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
    ],
    ("adapter", "adapter/non_lora_trainables.bin"): ["base_model.model.model.mm_projector.0.weight"],
}


def store(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write weights as the file's name says."""
    if path.suffix == ".safetensors":
        save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    else:
        torch.save({name: weight.clone() for name, weight in weights.items()}, path)


@pytest.mark.parametrize("most", [1, pytest.param(9, marks=pytest.mark.slow)], ids=["one", "several"])
@pytest.mark.parametrize(("kind", "file"), WEIGHTS, ids=[f"{kind}-{file}" for kind, file in WEIGHTS])
def test_weights_of_another_shape_or_kind(kind, file, most, checkpoints):
    checkpoint = checkpoints[kind]
    path, found = checkpoint.home / file, []
    data = path.read_bytes()
    whole = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    for name in WEIGHTS[kind, file][:most]:
        others = {key: weight for key, weight in whole.items() if key != name}
        for how, tensor in tensors_like(whole[name]):
            store(others if tensor is None else {**others, name: tensor}, path)
            found.append(checkpoint.wrong(f"{path.name}: {name}: {how}"))
        store({**others, f"strange.{name}": whole[name]}, path)
        found.append(checkpoint.wrong(f"{path.name}: {name}: under another name"))
    store({f"x.{name}": weight for name, weight in whole.items()}, path)
    found.append(checkpoint.wrong(f"{path.name}: all under other names"))
    restore(path, data)
    assert [one for one in found if one] == []


@pytest.mark.parametrize(
    "file", ["config.json", "pytorch_model.bin", "tokenizer.model", "tokenizer_config.json"]
)
def test_files_that_may_not_be_read(file, checkpoints, monkeypatch):
    """Which root may always, so that it is only played here."""
    access: Callable[..., bool] = os.access
    forbidden = checkpoints["full"].path / file
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != forbidden and access(path, mode))
    with pytest.raises(UserError, match=f"{file} may not be read by this user"):
        checkpoints["full"].ask()
