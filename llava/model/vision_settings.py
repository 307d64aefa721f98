"""What vision a model gets, as a value, and the keys of its config that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """What vision a model gets.

    Attributes:
        vision_tower: CLIP folder or hub id.
        select_layer: Which of its hidden states is read; LLaVA-1.5: -2.
        select_feature: ``patch``, or ``cls_patch`` to keep CLIP's class token.
        token_reduction: Setting of the reducer, as ``mm_vision_token_reduce_func``; None for none.
        projector_type: ``linear``, ``mlp<N>x_gelu`` or ``identity``.
        patch_merge_type: How crops of an image are joined: ``flat``, ``spatial`` or ``spatial_unpad``.
    """

    vision_tower: str
    select_layer: int = -2
    select_feature: str = "patch"
    token_reduction: str | None = None
    projector_type: str = "mlp2x_gelu"
    patch_merge_type: str = "flat"

    @classmethod
    def of(cls, model_args: Any, config: Any) -> VisionSettings:
        """Read LLaVA's arguments; the tower is the config's where they name none."""
        return cls(
            vision_tower=model_args.vision_tower or config.mm_vision_tower,
            select_layer=model_args.mm_vision_select_layer,
            select_feature=model_args.mm_vision_select_feature,
            token_reduction=model_args.mm_vision_token_reduce_func,
            projector_type=getattr(model_args, "mm_projector_type", None) or "linear",
            patch_merge_type=model_args.mm_patch_merge_type,
        )

    def write(self, config: Any) -> None:
        """Write LLaVA's keys into a config."""
        config.update(
            {
                "use_mm_proj": True,
                "mm_vision_tower": self.vision_tower,
                "mm_vision_select_layer": self.select_layer,
                "mm_vision_select_feature": self.select_feature,
                "mm_vision_token_reduce_func": self.token_reduction,
                "mm_projector_type": self.projector_type,
                "mm_patch_merge_type": self.patch_merge_type,
            }
        )
