"""The language model of a LLaVA as a folder of its own, for engines that load a plain Llama.

It is made once, into a cache, and anew when the checkpoint's files have changed. Weights are linked where a
whole file belongs to the language model and otherwise copied a few at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llava.errors import UserError
from llava.folder_lock import lock_folder
from llava.model.checkpoint_configs import LANGUAGE_MODEL_KEYS
from llava.model.checkpoint_files import (
    SAFETENSORS,
    CheckpointKind,
    StoredWeight,
    open_file,
    open_weights,
    weight_files,
)
from llava.model.loading import CheckpointParts, check_fit, find_parts, load_checkpoint
from llava.model.placement import Placement

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "LLAVA_CACHE"
LAYOUT = 1  # of what is written; another number makes all folders anew
SHARD_BYTES = 2**29  # of weights that are in memory at once
PATIENCE_S = 3600.0  # while another process writes


def cache_folder() -> Path:
    """Return where folders of language models are kept: ``LLAVA_CACHE``, or a place in the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "llava"


def split_language_model(
    model_path: str, model_base: str | None, vocabulary: int, dtype: torch.dtype
) -> Path:
    """Return a folder with the language model of a checkpoint, which is written if there is none.

    Args:
        model_path: See `load_checkpoint`.
        model_base: See there.
        vocabulary: Tokens of the model when it is loaded, of which the stored one may have fewer.
        dtype: In which an adapter is merged; stored weights stay as they are.

    Raises:
        UserError: If the checkpoint or the cache does not serve.
    """
    parts = find_parts(model_path, model_base)
    # Nothing of a full checkpoint has to be computed, unless tokens are added to it.
    is_stored = parts.kind is CheckpointKind.FULL and parts.config.vocab_size == vocabulary
    root = cache_folder() / "language_models"
    folder = root / _key(parts, None if is_stored else dtype)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with lock_folder(root, CACHE_VARIABLE, PATIENCE_S):
            if not folder.is_dir():
                logger.warning("the language model of %s is written to %s, once", model_path, folder)
                partial = root / "partial"
                shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
                partial.mkdir()
                if is_stored:
                    _split(parts, partial)
                else:
                    _merge(model_path, model_base, dtype, partial)
                partial.rename(folder)
    except OSError as error:
        raise UserError(
            f"the language model could not be written to {folder} ({error.strerror or error}); "
            f"{CACHE_VARIABLE} names another place"
        ) from None
    return folder


def _key(parts: CheckpointParts, dtype: torch.dtype | None) -> str:
    """Tell checkpoints apart by where their files are, how large they are and when they were written."""
    told: list[Any] = [LAYOUT, str(dtype)]
    for folder in dict.fromkeys((parts.folder.resolve(), parts.source.resolve())):
        for path in sorted(folder.iterdir()):
            if path.is_file():
                status = path.stat()
                told.append((str(path), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _split(parts: CheckpointParts, target: Path) -> None:
    """Write what a full checkpoint has stored of its language model."""
    weights = open_weights(parts.source)
    check_fit(parts, weights)
    writer = _Writer(target)
    for path in weight_files(parts.source):
        stored = open_file(path)
        own = {name: weight for name, weight in stored.items() if _is_of_language_model(name)}
        if not (len(own) == len(stored) and path.suffix == ".safetensors" and writer.link(path, own)):
            writer.copy(own.items())
    writer.finish(parts.config)


def _merge(model_path: str, model_base: str | None, dtype: torch.dtype, target: Path) -> None:
    """Write the language model of a checkpoint that has to be put together, in memory, first."""
    model = load_checkpoint(model_path, model_base, Placement(torch.device("cpu"), dtype)).model
    writer = _Writer(target)
    writer.copy((name, one) for name, one in model.state_dict().items() if _is_of_language_model(name))
    writer.finish(model.config)


def _is_of_language_model(name: str) -> bool:
    return name == "lm_head.weight" or (
        name.startswith(("model.layers.", "model.embed_tokens.", "model.norm."))
        and not name.endswith("rotary_emb.inv_freq")  # old checkpoints store what follows from the config
    )


class _Writer:
    """Writes a model's folder file by file.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, str] = {}  # by weight
        self._count = 0

    def link(self, path: Path, names: Iterable[str]) -> bool:
        """Let a file with these weights be in the folder too; tell whether the file system can do that."""
        target = self._next_file()
        try:
            os.link(path.resolve(), target)
        except OSError:
            return False
        self._files |= dict.fromkeys(names, target.name)
        return True

    def copy(self, weights: Iterable[tuple[str, StoredWeight]]) -> None:
        """Write weights to files of a limited size, of which one is in memory at a time."""
        shard: dict[str, Tensor] = {}
        for name, weight in weights:
            # Cloned: two names may share one tensor, which a file does not.
            shard[name] = weight[...].clone(memory_format=torch.contiguous_format)
            if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
                self._save(shard)
                shard = {}
        if shard:
            self._save(shard)

    def finish(self, config: Any) -> None:
        """Write the list of the files and the config of a plain Llama."""
        values = {key: value for key, value in config.to_dict().items() if key in LANGUAGE_MODEL_KEYS}
        values |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
        self._write_json("config.json", values)
        self._write_json(f"{SAFETENSORS}.index.json", {"metadata": {}, "weight_map": self._files})

    def _save(self, shard: dict[str, Tensor]) -> None:
        target = self._next_file()
        save_file(shard, target, metadata={"format": "pt"})
        self._files |= dict.fromkeys(shard, target.name)

    def _next_file(self) -> Path:
        self._count += 1
        return self._folder / f"model-{self._count:05d}.safetensors"

    def _write_json(self, name: str, values: dict[str, Any]) -> None:
        (self._folder / name).write_text(json.dumps(values, indent=2), encoding="utf-8")
