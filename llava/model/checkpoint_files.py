"""Finding and reading weight files: safetensors first, otherwise pickles of nothing but tensors (D11)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava.errors import MissingFileError, UserError

HUB_TIMEOUT_S = 10.0
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# What a model folder needs at run time; the other frameworks' weights in a hub repository are left there.
WANTED_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "*.bin"]


def resolve_folder(name: str, beside: Path | None = None) -> Path:
    """Find the folder of a checkpoint by path, beside another checkpoint, or on the model hub.

    Args:
        name: An absolute or relative folder, or a hub id such as ``openai/clip-vit-large-patch14-336``.
        beside: The checkpoint whose config says ``name``, which may be a folder next to it or in it.

    Raises:
        MissingFileError: If there is no such folder and ``name`` is no hub id that can be downloaded now.
    """
    place = _local_folder(name, beside)
    if place is not None:
        return place
    path = Path(name).expanduser()
    if path.exists():
        raise UserError(f"{name!r} is a file; a model is a folder with config.json and weights")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise MissingFileError(f"no model folder {name!r}")
    return _download(name)


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


def _local_folder(name: str, beside: Path | None) -> Path | None:
    """Return the folder of this machine that a name means, if there is one."""
    path = Path(name).expanduser()
    places = [path] if beside is None or path.is_absolute() else [beside.parent / path, beside / path, path]
    return next((place for place in places if place.is_dir()), None)


def _download(hub_id: str) -> Path:
    """Fetch a repository of the configured hub, or take the cached copy if the hub is out of reach.

    Raises:
        MissingFileError: If there is neither.
    """
    try:
        validate_repo_id(hub_id)
        # Asked first: unlike a download, it does not try again for half a minute where there is no network.
        files = [file.rfilename for file in HfApi().model_info(hub_id, timeout=HUB_TIMEOUT_S).siblings or ()]
        has_safetensors = any(file.endswith(".safetensors") for file in files)
        duplicates = ["pytorch_model*.bin"] if has_safetensors else None
        return Path(snapshot_download(hub_id, allow_patterns=WANTED_FILES, ignore_patterns=duplicates))
    except HFValidationError:
        raise MissingFileError(f"no model folder {hub_id!r}, and it is no id of the model hub") from None
    except Exception as error:  # noqa: BLE001 - of types of the hub client's HTTP library, which change
        return _cached(hub_id, (str(error).strip() or type(error).__name__).splitlines()[0])


def _cached(hub_id: str, reason: str) -> Path:
    """Return the hub cache's copy of a repository that could not be fetched for ``reason``.

    Raises:
        MissingFileError: If there is no copy.
    """
    try:
        return Path(snapshot_download(hub_id, allow_patterns=WANTED_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        raise MissingFileError(
            f"no folder {hub_id!r} here, and it could not be fetched from the model hub: {reason}"
        ) from None


def read_config(folder: Path, name: str = "config.json") -> dict:
    """Read one of a checkpoint's JSON files.

    Raises:
        MissingFileError: If the folder has none of this name.
        UserError: If it is not a JSON object.
    """
    path = folder / name
    if not path.is_file():
        raise MissingFileError(f"{folder} has no {name}, so it is no model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object")
    return config


def weight_files(folder: Path) -> list[Path]:
    """List the files that hold a whole model's weights, one or its shards; empty if there are none.

    Raises:
        MissingFileError: If a shard is missing.
        UserError: If the list of shards is damaged.
    """
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        index = f"{name}.index.json"
        if (folder / index).is_file():
            shards = read_config(folder, index).get("weight_map")
            if not isinstance(shards, dict):
                raise UserError(f"{folder / index} has no weight_map, so it lists no weights")
            files = [folder / str(shard) for shard in sorted(set(shards.values()))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                raise MissingFileError(f"{folder} lacks {len(missing)} of {len(files)} shards: {missing[0]}")
            return files
    return []


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a tensor-only pickle such as ``mm_projector.bin`` or ``non_lora_trainables.bin`` on the CPU.

    Raises:
        MissingFileError: If there is no such file.
        UserError: If the file is damaged or holds anything but tensors.
    """
    if not path.is_file():
        raise MissingFileError(f"no file {path}")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises many types for a damaged or unsafe pickle
        raise UserError(unreadable(path, error)) from None
    if not isinstance(tensors, dict):
        raise UserError(f"{path} does not hold a dictionary of tensors")
    return tensors


def unreadable(path: Path, error: Exception) -> str:
    """Say in one sentence that weights are damaged, or hold something else than tensors."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return (
        f"weights could not be read from {path}, which is damaged or holds more than tensors: {reason[:200]}"
    )


def iterate_weights(folder: Path, prefixes: tuple[str, ...] = ("",)) -> Iterator[tuple[str, Tensor]]:
    """Yield the (name, tensor) pairs of a whole model whose names start with one of ``prefixes``.

    Raises:
        MissingFileError: If the folder holds no weights.
        UserError: If a file is damaged or holds anything but tensors.
    """
    files = weight_files(folder)
    if not files:
        raise MissingFileError(f"{folder} has no weights ({' or '.join(WEIGHT_FILES)})")
    for path in files:
        yield from iterate_file(path, prefixes)


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
