"""What answers depend on, as values that can be compared: weights, code, questions, versions."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import nn

from llava import __version__
from llava.eval.benchmark import Question

PACKAGE = Path(__file__).parents[1]
# What turns a request into an answer; servers, training and reports can change without changing any.
ANSWERING = ("*.py", "engine/*.py", "model/**/*.py")
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "sentencepiece", "pillow", "numpy")
SAMPLES = 64  # elements of each weight that enter the digest


def weights_digest(model: nn.Module) -> str:
    """Tell models apart by some elements of each of their weights, wherever they were loaded from.

    Training changes nearly all elements of a weight; reading all of them would take minutes. CLIP's text
    encoder does not count: it comes with the vision tower, and is loaded only when it is needed.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        if isinstance(weight, torch.Tensor) and not weight.is_meta and "text_tower" not in name:
            flat = weight.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLES)]
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(sample.to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]


def code_digest() -> str:
    """Tell versions of the code that answers questions apart."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in ANSWERING for path in PACKAGE.glob(pattern)}):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def questions_digest(questions: Sequence[Question]) -> str:
    """Tell sets of questions apart; where a benchmark lies does not matter."""
    digest = hashlib.sha256()
    for question in questions:
        image = Path(question.image).name if isinstance(question.image, str | Path) else ""
        told = [question.id, question.text, question.clip_text, image, dict(question.extra)]
        digest.update(json.dumps(told, default=str).encode())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python and of the libraries that answers depend on."""
    found = {"llava": __version__, "code": code_digest(), "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
