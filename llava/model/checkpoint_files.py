"""Finding and reading weight files: safetensors first, otherwise pickles of nothing but tensors.

A checkpoint is a stranger's folder: nothing is read that lies outside of it, whatever its files say.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import tqdm, validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.errors import MissingFileError, UserError, shown

HUB_TIMEOUT_S = 10.0
MAX_JSON_BYTES = 64 * 2**20  # that of a 7B model's vocabulary is 2 MiB
MAX_NAME = 255  # bytes, on every usual file system
SAFETENSORS = "model.safetensors"
WEIGHT_FILES = (SAFETENSORS, "pytorch_model.bin")
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
# Names of weights, or what they begin with.
TOWER = "model.vision_tower."
PROJECTOR = "mm_projector."
NEWLINE = "model.image_newline"
# What a model folder needs at run time; the other frameworks' weights in a hub repository are left there.
WANTED_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]


class CheckpointKind(Enum):
    """What a checkpoint folder holds, in the words of messages."""

    FULL = "a full checkpoint"
    """Every weight of the language model, and of the projector if it has one."""
    PROJECTOR = "a projector"
    """``mm_projector.bin``, to go with a base model."""
    LORA = "a LoRA adapter"
    """Adapter and ``non_lora_trainables.bin``, to go with a base model."""


def resolve_folder(
    name: str | Path,
    beside: Path | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path:
    """Find the folder of a checkpoint by path, beside another checkpoint, or on the model hub.

    Args:
        name: An absolute or relative folder, or a hub id such as ``openai/clip-vit-large-patch14-336``.
        beside: The checkpoint whose config says ``name``, which may be a folder next to it or in it.
        revision: Branch, tag or commit of a repository on the hub.
        cache_dir: Where downloads are kept, instead of where ``HF_HOME`` says.

    Raises:
        MissingFileError: If there is no such folder and ``name`` is not a hub id that can be downloaded now.
    """
    place = _local_folder(name, beside)
    if place is not None:
        if not os.access(place, os.R_OK | os.X_OK):
            raise UserError(f"the folder {place} may not be read by this user")
        return place
    path, name = _expanded(name), str(name)
    if _exists(path):
        raise UserError(f"{shown(name)} is a file; a model is a folder with config.json and weights")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise MissingFileError(f"no model folder {shown(name)}")
    return _download(name, revision, cache_dir)


def name_elsewhere(name: str, beside: Path | None = None) -> str:
    """Return the name under which a checkpoint in any folder finds what `resolve_folder` finds.

    A hub id stays one. A folder is named by its absolute path, since a path relative to one checkpoint means
    nothing to another, and a copy would take gigabytes.

    Args:
        name: See `resolve_folder`.
        beside: See there.
    """
    place = _local_folder(name, beside)
    return name if place is None else str(place.absolute())


def lies_beside(folder: Path, name: str, beside: Path) -> bool:
    """Tell whether a name means this very folder next to a checkpoint or in it; see `resolve_folder`."""
    places = [place for place in (beside.parent / name, beside / name) if _exists(place)]
    return bool(places) and _exists(folder) and places[0].samefile(folder)


def is_same_model(named: str, used: str | Path, beside: Path | None = None) -> bool:
    """Tell whether two names seem to mean the same model: their last parts say so, or those of their folders.

    A hub id, its copy in any folder, and a link to that are the same; nothing is fetched to find out.

    Args:
        named: What a checkpoint says.
        used: What the user says.
        beside: The checkpoint; see `resolve_folder`.
    """
    return not _last_parts(named, beside).isdisjoint(_last_parts(used))


def _last_parts(name: str | Path, beside: Path | None = None) -> set[str]:
    """Return the last part of a name and, if it is a folder's, of where that really lies."""
    place = _local_folder(name, beside)
    if place is None:
        return {PurePath(name).name}
    real = place.resolve()
    # models--org--name/snapshots/<revision>
    cached = {real.parent.parent.name.rpartition("--")[2]} if real.parent.name == "snapshots" else set()
    return {place.absolute().name, real.name} | cached


def _local_folder(name: str | Path, beside: Path | None) -> Path | None:
    """Return the folder of this machine that a name means, if there is one."""
    path = _expanded(name)
    places = [path] if beside is None or path.is_absolute() else [beside.parent / path, beside / path, path]
    return next((place for place in places if _exists(place) and place.is_dir()), None)


def _expanded(name: str | Path) -> Path:
    """Return a path in which ``~`` is resolved.

    Raises:
        UserError: If it is no name, or names a user that this machine has not.
    """
    if not isinstance(name, str | PathLike):
        raise UserError(f"a model is named by {name!r}; accepted: a folder or a hub id")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise MissingFileError(f"no model folder {shown(name)}: {error}") from None


def _exists(path: Path) -> bool:
    """Tell whether there is something of this name; a name that cannot be one is nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


class _Bar(tqdm):
    """The hub client's progress bar, on terminals only: in a file it would be a line without an end."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"disable": None, **settings})


def _download(hub_id: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Fetch a repository of the configured hub, or take the cached copy if the hub is out of reach.

    Arguments are those of `resolve_folder`.

    Raises:
        MissingFileError: If there is neither.
    """
    fetch = partial(
        snapshot_download,
        hub_id,
        revision=revision,
        cache_dir=cache_dir,
        allow_patterns=WANTED_FILES,
        tqdm_class=_Bar,
    )
    try:
        validate_repo_id(hub_id)
        # Asked first: unlike a download, it does not try again for half a minute where there is no network.
        info = HfApi().model_info(hub_id, revision=revision, timeout=HUB_TIMEOUT_S)
        files = [file.rfilename for file in info.siblings or ()]
        has_safetensors = any(file in files for file in (SAFETENSORS, f"{SAFETENSORS}.index.json"))
        duplicates = ["pytorch_model*.bin"] if has_safetensors else None
        return Path(fetch(ignore_patterns=duplicates))
    except HFValidationError:
        raise MissingFileError(
            f"no model folder {shown(hub_id)}, and it is not a valid id of the model hub"
        ) from None
    except Exception as error:  # noqa: BLE001 - of types of the hub client's HTTP library, which change
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    try:
        return Path(fetch(local_files_only=True))
    except LocalEntryNotFoundError:
        raise MissingFileError(
            f"no folder {shown(hub_id)} here, and it could not be fetched from the model hub: {reason}"
        ) from None


def own_file(folder: Path, name: str) -> Path | None:
    """Return a file of a checkpoint, None if there is none of this name.

    Args:
        folder: The checkpoint's.
        name: A plain file name; it may come from one of the folder's own files.

    Raises:
        UserError: If the name is a path, or a link out of the folder that is not the hub cache's own, or the
            file may not be read.
    """
    path = folder / name
    if name in ("", ".", "..") or len(name) > MAX_NAME or any(letter in name for letter in "/\\\0"):
        raise UserError(
            f"{folder} names a file {shown(name)}; a checkpoint's files are plain names in its folder"
        )
    if not path.is_file():
        if os.path.lexists(path):  # a library might open it by its name all the same
            raise UserError(f"{path} is not a file; a checkpoint holds its files themselves")
        return None
    if not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by this user")
    home, place = folder.resolve(), path.resolve()
    if place.is_relative_to(home):
        return path
    # models--org--name/snapshots/<revision>/file is a link to models--org--name/blobs/<hash>
    if home.parent.name == "snapshots" and place.parent == home.parent.parent / "blobs":
        return path
    raise UserError(f"{path} is a link out of its checkpoint, to {place}; put the file itself there")


def read_config(folder: Path, name: str = "config.json") -> dict:
    """Read one of a checkpoint's JSON files.

    Raises:
        MissingFileError: If the folder has none of this name.
        UserError: If it is not a JSON object, too large for one, or a link out of the folder.
    """
    path = own_file(folder, name)
    if path is None:
        raise MissingFileError(f"{folder} has no {name}, so it is not a model folder")
    check_size(path, MAX_JSON_BYTES)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers with thousands of digits
        raise UserError(f"{path} is not valid JSON: {error}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    return config


def check_size(path: Path, most: int) -> None:
    """Refuse a file of more than ``most`` bytes.

    Raises:
        UserError: If it is larger.
    """
    if path.stat().st_size > most:
        raise UserError(f"{path} is larger than {most // 2**20} MiB, the limit for a file of this kind")


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a full checkpoint's weights, one or its shards; empty if there are none.

    Raises:
        MissingFileError: If a shard is missing.
        UserError: If the list of shards is damaged, or one of them lies elsewhere.
    """
    for name in WEIGHT_FILES:
        weights = own_file(folder, name)
        if weights is not None:
            return [weights]
        index = f"{name}.index.json"
        if own_file(folder, index) is not None:
            shards = read_config(folder, index).get("weight_map")
            if not isinstance(shards, dict):
                raise UserError(f"{folder / index} has no weight_map, so it lists no weights")
            names = sorted({str(shard) for shard in shards.values()})
            files = {shard: own_file(folder, shard) for shard in names}
            missing = [shard for shard, file in files.items() if file is None]
            if missing:
                raise MissingFileError(f"{folder} lacks {len(missing)} of {len(files)} shards: {missing[0]}")
            return [file for file in files.values() if file is not None]
    return []


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """Tell a checkpoint's kind from its files.

    Raises:
        MissingFileError: If the folder holds none of the three.
    """
    if any(own_file(folder, name) for name in ADAPTER_FILES):
        return CheckpointKind.LORA
    # A full model may also ship mm_projector.bin, so its weights are looked for first.
    if weight_files(folder):
        return CheckpointKind.FULL
    if own_file(folder, PROJECTOR_FILE):
        return CheckpointKind.PROJECTOR
    raise MissingFileError(
        f"{folder} has no weights: expected model.safetensors or pytorch_model.bin (or their shards), "
        "mm_projector.bin, or a LoRA adapter (adapter_model.safetensors)"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a tensor-only pickle such as ``mm_projector.bin`` or ``non_lora_trainables.bin`` on the CPU.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If the file is damaged or holds anything but tensors.
    """
    # Copied: what is mapped to a file changes with the file.
    return {name: tensor.clone() for name, tensor in _open_tensors(path).items()}


def open_pickle(path: Path) -> Any:
    """Open a pickle of tensors and plain values, mapped to the file if PyTorch wrote it since 2020.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If the file is damaged or holds anything else.
    """
    if not path.is_file():
        raise MissingFileError(f"no file {path}")
    try:
        can_map = zipfile.is_zipfile(path)
        if can_map:
            with zipfile.ZipFile(path) as archive:
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise UserError(f"{path} is compressed, as PyTorch writes no weights; store it plainly")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map or None)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged or unsafe pickle
        raise UserError(unreadable(path, error)) from None


def _open_tensors(path: Path) -> dict[str, Tensor]:
    """Open a tensor-only pickle.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If the file is damaged or holds anything but tensors, or less of them than it says.
    """
    tensors = open_pickle(path)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise UserError(f"{path} does not hold a dictionary of tensors")
    _check_stored(path, tensors)
    return tensors


def _check_stored(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that a pickle claims to be larger than what it stores, such as one number repeated.

    Raises:
        UserError: If their sizes are not those of the file; weights that two names share count for both.
    """
    for name, tensor in tensors.items():
        is_plain = tensor.layout is torch.strided and not (
            tensor.is_meta or tensor.is_quantized or tensor.is_nested
        )
        if not is_plain or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UserError(f"{path} does not store all numbers of {name}")
    size, stored = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if size > 2 * stored:
        raise UserError(f"{path} has {stored:,} bytes and claims to hold {size:,} bytes of weights")


StoredWeight = Any
"""A tensor, or a safetensors slice, which reads its tensor when it is indexed with ``[...]``."""


def open_weights(folder: Path) -> dict[str, StoredWeight]:
    """Open all weights of a full checkpoint by name; they are read when they are used.

    Raises:
        MissingFileError: If the folder holds no weights.
        UserError: If a file is damaged or holds anything but tensors.
    """
    return {name: one for path in _needed_weight_files(folder) for name, one in open_file(path).items()}


def open_file(path: Path) -> dict[str, StoredWeight]:
    """Open the weights of one file, as `open_weights` does for all files of a model."""
    if path.suffix != ".safetensors":
        return dict(_open_tensors(path))
    try:
        file = safe_open(path, framework="pt")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(path, error)) from None


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the names and shapes of one file's weights.

    Raises:
        UserError: If it is damaged or holds anything but tensors.
    """
    return shapes_of(open_file(path))


def shapes_of(weights: Mapping[str, StoredWeight]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of weights from `open_weights`, without reading them."""
    return {
        name: tuple(weight.shape if isinstance(weight, Tensor) else weight.get_shape())
        for name, weight in weights.items()
    }


def dtypes_of(weights: Mapping[str, StoredWeight]) -> dict[str, str]:
    """Return the names of the types of weights from `open_weights`, without reading them."""
    return {
        name: str(weight.dtype if isinstance(weight, Tensor) else weight.get_dtype())
        for name, weight in weights.items()
    }


def unreadable(path: Path, error: Exception) -> str:
    """Say in one sentence that a file of weights is damaged, or holds something else than tensors."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    sentence = f"weights could not be read from {path}, which is damaged or holds more than tensors"
    # What torch says of other pickles is how to open them all the same.
    return sentence if "weights_only" in reason else f"{sentence}: {reason[:200]}"


def iterate_weights(folder: Path, prefixes: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Tensor]]:
    """Yield the (name, tensor) pairs of a full checkpoint whose names start with one of ``prefixes``.

    Raises:
        MissingFileError: If the folder holds no weights.
        UserError: If a file is damaged or holds anything but tensors.
    """
    for path in _needed_weight_files(folder):
        yield from iterate_file(path, prefixes)


def _needed_weight_files(folder: Path) -> list[Path]:
    """Return `weight_files`, of which there must be one."""
    files = weight_files(folder)
    if not files:
        raise MissingFileError(f"{folder} has no weights ({' or '.join(WEIGHT_FILES)})")
    return files


def iterate_file(path: Path, prefixes: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Tensor]]:
    """Yield the pairs of one file, as `iterate_weights` does for all files of a model."""
    if path.suffix != ".safetensors":
        yield from ((name, value) for name, value in read_tensors(path).items() if name.startswith(prefixes))
        return
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                if name.startswith(prefixes):
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(unreadable(path, error)) from None
