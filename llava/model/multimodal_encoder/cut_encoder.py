"""CLIP's vision encoder without the layers above the one that LLaVA reads, called like the whole.

Shapes: B images, N patches per image, D width of the encoder.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPVisionModelOutput

from llava.errors import UserError


class CutVisionModel(CLIPVisionModelWithProjection):
    """CLIP's vision encoder with its projection, whose layers above the selected one are never built.

    Called as LLaVA's is, with ``output_hidden_states=True``, it gives as many hidden states as the whole
    encoder, so that ``hidden_states[-2]`` is what it is there. What only the layers that were not built could
    tell is a `NotComputed`, which refuses any use.

    Attributes:
        layers_not_built: How many of the encoder's layers are missing at its end.
    """

    layers_not_built: int = 0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model.register_forward_hook(self._mark)

    def selected_hidden_state(self, pixels: Tensor) -> Tensor:
        """Return the hidden state of pixels (B, 3, height, width) behind the last built layer, (B, 1 + N, D).

        Neither the norm nor the pooling that CLIP has behind its last layer is run.
        """
        vision = self.vision_model
        embedded = vision.pre_layrnorm(vision.embeddings(pixels))
        return vision.encoder(inputs_embeds=embedded).last_hidden_state

    def forward(self, pixel_values: Tensor | None = None, **kwargs: Any) -> CLIPVisionModelOutput:
        """Run the encoder on pixels (B, 3, height, width); transformers' other arguments apply."""
        kwargs["return_dict"] = True
        outputs = self.vision_model(pixel_values=pixel_values, **kwargs)
        pooled = outputs.pooler_output
        return CLIPVisionModelOutput(
            image_embeds=pooled if isinstance(pooled, NotComputed) else self.visual_projection(pooled),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _mark(self, module: nn.Module, inputs: Any, outputs: Any) -> Any:
        """Replace what the missing layers would have changed by `NotComputed`; a hook of ``forward``."""
        del module, inputs
        if self.layers_not_built == 0:
            return outputs
        missing = NotComputed()
        hidden_states = outputs.hidden_states
        if hidden_states is not None:
            hidden_states = (*hidden_states, *[missing] * self.layers_not_built)
        return BaseModelOutputWithPooling(
            last_hidden_state=missing,
            pooler_output=missing,
            hidden_states=hidden_states,
            attentions=outputs.attentions,
        )


class NotComputedError(UserError, AttributeError):
    """Something was asked for that layers compute which were not built."""


class NotComputed:
    """Stands where a tensor would be that layers compute which were not built."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise NotComputedError(
            "this CLIP vision encoder ends at the layer that LLaVA reads (mm_vision_select_layer), so what "
            "the layers above it compute is not there; load CLIP itself with transformers for that"
        )

    def __repr__(self) -> str:
        return "NotComputed()"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python's own questions, such as how to copy this
            raise AttributeError(name)
        self._refuse()

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> NoReturn:
        cls()._refuse()

    __getitem__ = __len__ = __iter__ = __bool__ = _refuse
    __add__ = __sub__ = __mul__ = __matmul__ = __truediv__ = _refuse
