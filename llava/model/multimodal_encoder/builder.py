"""Builds the vision tower that a config names."""

from __future__ import annotations

from typing import Any

from llava.errors import UserError
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower


def build_vision_tower(vision_tower_cfg: Any, delay_load: bool = False) -> CLIPVisionTower:
    """Build the tower named by ``mm_vision_tower`` (or ``vision_tower``), a hub id or a folder.

    Raises:
        UserError: If the config names no tower or asks for the multi-scale one.
    """
    name = getattr(vision_tower_cfg, "mm_vision_tower", None) or getattr(
        vision_tower_cfg, "vision_tower", None
    )
    if not name:
        raise UserError("the config names no vision tower (mm_vision_tower)")
    if getattr(vision_tower_cfg, "s2", False):
        raise UserError(
            "s2 (the multi-scale tower) is set in the config; only the plain CLIP tower is supported"
        )
    return CLIPVisionTower(name, args=vision_tower_cfg, delay_load=delay_load)
