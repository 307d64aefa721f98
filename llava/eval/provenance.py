"""What answers depend on, as values that can be compared: weights, code, questions, versions."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn

from llava import __version__
from llava.assistant import Assistant
from llava.eval.benchmark import Question
from llava.internals import offloaded_weight
from llava.messages import ImageSource
from llava.model.multimodal_encoder.reducers.registry import parse_reduction

PACKAGE = Path(__file__).parents[1]
# What turns a request into an answer; servers, training and reports can change without changing any.
ANSWERING = ("*.py", "engine/*.py", "model/**/*.py")
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "sentencepiece", "pillow", "numpy")
TEXT_TOWER = "text_tower"
SAMPLES = 64  # elements of each weight that enter the digest
SAMPLED_BYTES = 4096  # of each image file, from its middle
# Settings of a checkpoint that change no answer.
NOT_ANSWERING = frozenset(
    {
        *("_name_or_path", "name_or_path", "transformers_version", "architectures", "use_cache", "dtype"),
        *("torch_dtype", "mm_projector_lr", "mm_vision_tower", "vision_tower", "tokenizer_padding_side"),
        *("tune_mm_mlp_adapter", "freeze_mm_mlp_adapter", "initializer_range", "attention_dropout"),
        "mm_vision_token_reduce_func",  # which is told by itself, as it was chosen
    }
)


def weights_digest(model: nn.Module) -> str:
    """Tell models apart by some elements of each of their weights, wherever they were loaded from.

    Training changes nearly all elements of a weight; reading all of them would take minutes. CLIP's text
    encoder, which is loaded only where it is needed, is told by itself in `settings_of`. Weights that found
    no room on the device count like all others: how many these are depends on what else runs there.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor) and TEXT_TOWER not in name:
            module, _, own_name = name.rpartition(".")
            held = offloaded_weight(model.get_submodule(module), own_name) if weight.is_meta else weight
            flat = held.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLES)]
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def settings_of(assistant: Assistant, reduction: str | None = None) -> dict[str, Any]:
    """Return all of a loaded model that decides what its answers are.

    Args:
        assistant: Has the model.
        reduction: Setting of the reducer instead of its own.
    """
    model, tower = assistant.model, assistant.model.get_vision_tower()
    reducer = assistant.encoder.reducer if reduction is None else parse_reduction(reduction)
    text_encoder = None
    if tower is not None and reducer.needs_question:
        tower.load_text_encoder()
        assert tower.text_tower is not None
        text_encoder = weights_digest(tower.text_tower)
    config = {key: value for key, value in model.config.to_dict().items() if key not in NOT_ANSWERING}
    processor = None if tower is None else tower.image_processor.to_dict()
    return {
        "weights": weights_digest(model),
        "text_encoder": text_encoder,
        "config": digest_of([config, processor]),
        "tokenizer": _tokenizer_digest(assistant),
        "quantization": str(getattr(model, "quantization_method", None)),
        "dtype": str(model.dtype).removeprefix("torch."),
        "reduction": str(reducer),
        "reducer": _source_digest(type(reducer)),
        **assistant.engine.settings,
    }


def _source_digest(code: type | FunctionType) -> str:
    """Tell versions of a module apart by a class or function of it; it may lie outside of the package."""
    path = inspect.getsourcefile(code)
    return hashlib.sha256(b"" if path is None else Path(path).read_bytes()).hexdigest()[:16]


def digest_of(document: Any) -> str:
    """Return a digest of a document of JSON, or of what can be written as text."""
    return hashlib.sha256(json.dumps(document, default=str, sort_keys=True).encode()).hexdigest()[:16]


def _tokenizer_digest(assistant: Assistant) -> str:
    """Tell tokenizers apart by what they make of numbers and texts, and by the tokens that end an answer."""
    tokenizer = assistant.tokenizer
    settings = assistant.model.generation_config
    ends = None if settings is None else settings.eos_token_id
    pieces = tokenizer.convert_ids_to_tokens(list(range(tokenizer.vocab_size)))
    return digest_of([pieces, tokenizer.get_added_vocab(), tokenizer.eos_token_id, ends])


def code_digest() -> str:
    """Tell versions of the code that answers questions apart."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in ANSWERING for path in PACKAGE.glob(pattern)}):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def question_digests(questions: Sequence[Question]) -> list[str]:
    """Tell questions apart by what is asked and shown; where a benchmark lies does not matter.

    What says which patches show what is asked about is told by its code: what was kept of these is recorded
    with the answer. Drawing all the scenes again, to compare patches, would take seconds per setting.
    """
    images: dict[Any, str] = {}
    told = []
    for question in questions:
        key = question.image if isinstance(question.image, str | Path) else id(question.image)
        if key not in images:
            images[key] = _image_digest(question.image)
        shown = [question.id, question.text, question.clip_text, images[key], sorted(question.extra.items())]
        if (about := question.about) is not None:
            shown.append(_source_digest(about if isinstance(about, FunctionType) else type(about)))
        told.append(digest_of(shown))
    return told


def _image_digest(image: ImageSource | None) -> str:
    """Tell images apart by their size and some of their bytes, wherever they lie; empty for none.

    Reading a hundred thousand images whole would take as long as answering questions about them.
    """
    if isinstance(image, str | Path):
        try:
            with Path(image).open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                middle = file.seek(max(0, size // 2 - SAMPLED_BYTES // 2))
                return hashlib.sha256(f"{size} {middle}".encode() + file.read(SAMPLED_BYTES)).hexdigest()[:16]
        except (OSError, ValueError):  # the latter for a name with a null character
            return ""
    # What is decoded when it is read says itself what it is made of.
    return str(getattr(image, "digest", ""))


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries that answers depend on."""
    found = {"llava": __version__, "code": code_digest(), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
