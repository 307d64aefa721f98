"""Comparing what a config asks for with what is stored, before anything of that size is built.

A stranger's config may ask for a trillion layers; those that are stored can be counted. A model of any width
costs nothing on PyTorch's meta device.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from llava.errors import UserError

logger = logging.getLogger(__name__)

FLOATING = re.compile(r"(torch\.)?b?f(loat)?\d+", re.IGNORECASE)

Model = TypeVar("Model", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]
"""Weights by name, without their values."""


def count_layers(names: Iterable[str], prefix: str) -> int:
    """Count the layers whose weights are stored under ``<prefix><index>.``.

    An index with less than half the weights of others is no layer: names alone are cheap to make.
    """
    pattern = re.compile(rf"{re.escape(prefix)}(\d{{1,9}})\.")
    weights = Counter(match[1] for match in map(pattern.match, names) if match)
    most = max(weights.values(), default=0)
    return sum(2 * count >= most for count in weights.values())


def check_layers(asked_for: int, names: Iterable[str], prefix: str, folder: Path) -> None:
    """Refuse a config whose number of layers is not that of the stored ones.

    Args:
        asked_for: ``num_hidden_layers``.
        names: Of what is stored.
        prefix: What comes before a layer's index in the names.
        folder: The checkpoint's.

    Raises:
        UserError: If the numbers differ.
    """
    stored = count_layers(names, prefix)
    if stored != asked_for:
        raise UserError(
            f"{folder} does not fit the config: num_hidden_layers is {asked_for}, and {stored} layers are "
            "stored"
        )


def check_shapes(build: Callable[[], nn.Module], shapes: Shapes, folder: Path) -> set[str]:
    """Refuse a config that asks for other weights than the stored ones.

    Args:
        build: Builds the model from a config whose number of layers was checked by `check_layers`.
        shapes: What is stored, under the names of the model.
        folder: The checkpoint's, for messages.

    Returns:
        Names of stored weights of which the model has none.

    Raises:
        UserError: If weights are missing or of another shape.
    """
    expected = build_without_weights(build, folder).state_dict()
    missing = expected.keys() - shapes.keys()
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} weights of the model, the first is {min(missing)}")
    return refuse_other_shapes(expected, shapes, f"{folder} does not fit the config")


def build_without_weights(build: Callable[[], Model], folder: Path) -> Model:
    """Build a model on PyTorch's meta device, where it takes no memory.

    Args:
        build: Builds it from a checkpoint's config.
        folder: The checkpoint's, for messages.

    Raises:
        UserError: If none can be built.
    """
    try:
        with torch.device("meta"):
            return build()
    except UserError:
        raise
    # Of sizes that no tensor can have, and settings that do not go together.
    except (RuntimeError, ValueError, AssertionError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"no model can be built from the config of {folder}: {reason[:200]}") from None


def refuse_other_shapes(expected: Mapping[str, Tensor], shapes: Shapes, what: str) -> set[str]:
    """Refuse stored weights that are of another shape than those of the model.

    Args:
        expected: The model's weights; what of them is not stored is not looked at.
        shapes: What is stored.
        what: Begins the sentence: which file does not fit.

    Returns:
        Names of stored weights of which the model has none.

    Raises:
        UserError: If one is of another shape.
    """
    for name, weight in expected.items():
        if name in shapes and shapes[name] != tuple(weight.shape):
            raise UserError(f"{what}: {name}: {shapes[name]} instead of {tuple(weight.shape)}")
    return set(shapes.keys() - expected.keys())


def refuse_other_types(dtypes: Mapping[str, str], needed: Iterable[str], folder: Path) -> None:
    """Refuse weights that are stored as whole numbers, of which no library says what they mean.

    Args:
        dtypes: Of what is stored, by name, such as ``F16`` or ``int64``.
        needed: Names of the model's weights.
        folder: The checkpoint's, for messages.

    Raises:
        UserError: If there are any.
    """
    for name in needed:
        if name in dtypes and not FLOATING.match(dtypes[name]):
            raise UserError(f"{folder} stores {name} as {dtypes[name]}; accepted: numbers with a fraction")


def refuse_nonfinite(model: nn.Module, folder: Path) -> None:
    """Refuse weights that are infinite or not a number, with which a model says nothing that makes sense.

    Args:
        model: Loaded; what accelerate keeps elsewhere is not looked at.
        folder: The checkpoint's, for messages.

    Raises:
        UserError: If there are any.
    """
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta:
            # Neither can hide in a sum; one number a weight is fetched from the device, all of them at once.
            total = weight.detach().sum(dtype=torch.float32)
            by_device.setdefault(weight.device, {})[name] = total
    for sums in by_device.values():
        finite = torch.stack(list(sums.values())).isfinite().tolist()
        wrong = [name for name, is_finite in zip(sums, finite, strict=True) if not is_finite]
        if wrong:
            raise UserError(
                f"{folder} has weights that are not finite (NaN or infinite): {len(wrong)} of {len(sums)} "
                f"tensors, the first is {wrong[0]}"
            )


def warn_of_surplus(names: set[str], folder: Path) -> None:
    """Say once that a checkpoint stores weights that nothing reads."""
    if names:
        logger.warning(
            "%s stores %d weights of which this model has none; the first is %s",
            folder,
            len(names),
            min(names),
        )
