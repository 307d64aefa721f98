"""Nothing of a checkpoint is read from outside of its folder, and no file holds more than it stores."""

import json
import shutil
import zipfile
from io import StringIO
from pathlib import Path

import pytest
import torch
from huggingface_hub.utils import enable_progress_bars
from safetensors.torch import save_file

from llava.errors import MissingFileError, UserError
from llava.model.checkpoint_files import (
    _Bar,
    is_same_model,
    open_weights,
    own_file,
    read_config,
    read_tensors,
    shapes_of,
)

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4)}


def write_index(folder: Path, shard: str) -> Path:
    """Write a list of shards that names one file."""
    folder.mkdir(exist_ok=True)
    index = {"metadata": {}, "weight_map": {"a.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "shard",
    [
        "../outside/m.safetensors",
        "../../etc/passwd",
        "ABSOLUTE",
        "sub/m.safetensors",
        "..",
        "",
        "a\0b",
        "a\\b",
    ],
)
def test_shards_are_plain_names_of_the_folder(shard: str, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    save_file(TENSORS, tmp_path / "outside" / "m.safetensors")
    outside = str(tmp_path / "outside" / "m.safetensors")
    folder = write_index(tmp_path / "checkpoint", outside if shard == "ABSOLUTE" else shard)
    (folder / "sub").mkdir()
    save_file(TENSORS, folder / "sub" / "m.safetensors")
    with pytest.raises(UserError, match="plain names in its folder"):
        open_weights(folder)


def test_links_out_of_the_folder_are_refused_whatever_they_stand_for(tmp_path: Path):
    outside, folder = tmp_path / "outside", tmp_path / "checkpoint"
    outside.mkdir()
    folder.mkdir()
    save_file(TENSORS, outside / "m.safetensors")
    (outside / "config.json").write_text("{}")
    (folder / "model.safetensors").symlink_to(outside / "m.safetensors")
    (folder / "config.json").symlink_to("../outside/config.json")
    with pytest.raises(UserError, match="link out of its checkpoint"):
        open_weights(folder)
    with pytest.raises(UserError, match="link out of its checkpoint"):
        read_config(folder)


def test_links_inside_the_folder_and_to_the_folder_are_followed(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(TENSORS, folder / "renamed.safetensors")
    (folder / "model.safetensors").symlink_to("renamed.safetensors")
    (tmp_path / "alias").symlink_to(folder)
    assert open_weights(tmp_path / "alias").keys() == TENSORS.keys()


def test_the_hub_caches_own_links_are_followed_and_no_others(tmp_path: Path):
    home = tmp_path / "models--someone--something"
    snapshot = home / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    save_file(TENSORS, home / "blobs" / "abcd")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abcd")
    (snapshot / "config.json").symlink_to("../../secret.json")
    (home / "secret.json").write_text("{}")
    assert open_weights(snapshot).keys() == TENSORS.keys()
    with pytest.raises(UserError, match="link out of its checkpoint"):
        own_file(snapshot, "config.json")
    # A folder of blobs that is itself a link leads out as well.
    shutil.move(home / "blobs", tmp_path / "elsewhere")
    (home / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="link out of its checkpoint"):
        open_weights(snapshot)


def test_a_weight_is_read_when_it_is_used(tmp_path: Path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")
    for path in (tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"):
        weights = open_weights(tmp_path)
        assert shapes_of(weights) == {
            "a.weight": (2, 3),
            "b.weight": (4,),
        }
        assert torch.equal(weights["a.weight"][...], TENSORS["a.weight"])
        path.unlink()


def test_files_of_pytorch_before_2020_are_read(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.bin")["a.weight"], TENSORS["a.weight"])


def test_what_was_read_does_not_change_with_its_file(tmp_path: Path):
    torch.save(TENSORS, tmp_path / "a.bin")
    read = read_tensors(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"")
    assert torch.equal(read["a.weight"], TENSORS["a.weight"])


@pytest.mark.parametrize("new_format", [True, False])
def test_a_number_repeated_a_billion_times_is_refused(new_format: bool, tmp_path: Path):
    huge = {"a.weight": torch.ones(1).expand(10**9)}
    torch.save(huge, tmp_path / "a.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match=r"does not store all numbers of a\.weight"):
        read_tensors(tmp_path / "a.bin")


def test_many_names_for_the_same_numbers_are_refused(tmp_path: Path):
    shared = torch.ones(10_000)
    torch.save({"a": shared, "b": shared}, tmp_path / "tied.bin")
    assert read_tensors(tmp_path / "tied.bin").keys() == {"a", "b"}
    torch.save({str(i): shared for i in range(100)}, tmp_path / "many.bin")
    with pytest.raises(UserError, match="claims to hold 4,000,000 bytes"):
        read_tensors(tmp_path / "many.bin")


def test_a_compressed_pickle_is_refused(tmp_path: Path):
    torch.save({"a": torch.zeros(2**20)}, tmp_path / "plain.bin")
    with (
        zipfile.ZipFile(tmp_path / "plain.bin") as plain,
        zipfile.ZipFile(tmp_path / "small.bin", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.namelist():
            small.writestr(entry, plain.read(entry))
    with pytest.raises(UserError, match="is compressed"):
        read_tensors(tmp_path / "small.bin")


@pytest.mark.parametrize(
    "value", [[torch.ones(1)], {"a": 1}, {1: torch.ones(1)}, {"a": {"b": torch.ones(1)}}]
)
def test_anything_but_named_tensors_is_refused(value: object, tmp_path: Path):
    torch.save(value, tmp_path / "a.bin")
    with pytest.raises(UserError, match="does not hold a dictionary of tensors"):
        read_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "not valid JSON"),
        ('{"a": 1' + "0" * 10_000 + "}", "not valid JSON"),
        ("[]", "not a JSON object"),
        (" " * (65 * 2**20), "larger than 64 MiB"),
    ],
)
def test_hostile_json_is_one_sentence(text: str, reason: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=reason):
        read_config(tmp_path)


def test_a_missing_config_is_named(tmp_path: Path):
    with pytest.raises(MissingFileError, match=r"has no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("named", "used", "is_same"),
    [
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-7b-v1.5", True),
        ("lmsys/vicuna-7b-v1.5", "models/vicuna-7b-v1.5/", True),
        ("/gone/vicuna-7b-v1.5", "models/vicuna-7b-v1.5", True),
        ("lmsys/vicuna-7b-v1.5", "link", True),
        ("link", "models/vicuna-7b-v1.5", True),
        ("models/vicuna-7b-v1.5", "link", True),
        ("lmsys/vicuna-7b-v1.5", "hub/models--lmsys--vicuna-7b-v1.5/snapshots/0123abc", True),
        ("vicuna-7b-v1.5", "models/vicuna-7b-v1.5", True),
        ("lmsys/vicuna-7b-v1.5", "lmsys/vicuna-13b-v1.5", False),
        ("lmsys/vicuna-7b-v1.5", "models/vicuna-13b-v1.5", False),
        ("models/vicuna-13b-v1.5", "link", False),
        ("/gone\0/" + "x" * 5000, "models/vicuna-7b-v1.5", False),
    ],
)
def test_a_copy_and_a_link_are_the_same_model(
    named: str, used: str, is_same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("models/vicuna-7b-v1.5", "models/vicuna-13b-v1.5", "adapter"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "hub/models--lmsys--vicuna-7b-v1.5/snapshots/0123abc").mkdir(parents=True)
    (tmp_path / "link").symlink_to("models/vicuna-7b-v1.5")
    monkeypatch.chdir(tmp_path)
    assert is_same_model(named, used, beside=tmp_path / "adapter") is is_same
    monkeypatch.chdir(tmp_path / "models/vicuna-7b-v1.5")
    assert is_same_model("lmsys/vicuna-7b-v1.5", ".")


def test_downloads_draw_no_bars_into_files():
    enable_progress_bars()  # whatever a command of another test has chosen

    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    drawn = []
    for stream in (StringIO(), Terminal()):
        assert list(_Bar(range(3), desc="Fetching 3 files", file=stream)) == [0, 1, 2]
        drawn.append("\r" in stream.getvalue())
    assert drawn == [False, True]
