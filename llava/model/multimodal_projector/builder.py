"""Builds the projector from the vision tower's width to the language model's."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from llava.errors import UserError


def build_vision_projector(config: Any) -> nn.Module:
    """Build what ``mm_projector_type`` names: ``linear`` (default), ``mlp<N>x_gelu`` or ``identity``.

    Maps (…, ``mm_hidden_size``) to (…, ``hidden_size``).

    Raises:
        UserError: If the type is none of these, or ``identity`` and the widths differ.
    """
    kind = getattr(config, "mm_projector_type", None) or "linear"
    if kind == "identity":
        if config.mm_hidden_size != config.hidden_size:
            raise UserError(
                "mm_projector_type identity needs equal widths; the vision tower's is "
                f"{config.mm_hidden_size}, the language model's {config.hidden_size}"
            )
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(config.mm_hidden_size, config.hidden_size)
    depth = re.fullmatch(r"mlp([1-9]\d?)x_gelu", kind)
    if depth is None:
        raise UserError(
            f"mm_projector_type is {kind!r}; accepted: linear, identity, mlp<N>x_gelu with N from 1 to 99"
        )
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(int(depth[1]) - 1):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return nn.Sequential(*layers)
