"""The LLaVA-1.5 model class over Llama, under the names that checkpoints and callers use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from llava.errors import UserError
from llava.internals import CACHE_ARGUMENT
from llava.model.language_model.llava_config import LlavaConfig
from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel
from llava.model.prompt_encoder import Images
from llava.model.saving import (
    complete_config,
    full_state_dict,
    share_weights,
    valid_generation_config,
)
from llava.model.splice import ImageText, count_supervised


class LlavaLlamaModel(LlavaMetaModel, LlamaModel):
    """The transformer with its vision tower and projector."""

    config_class = LlavaConfig


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """LLaVA-1.5 over Llama or Vicuna.

    Pixels go through CLIP, the token reducer and the projector; the tokens that come out stand in the prompt
    where ``<image>`` stood; from there on it is the language model.
    """

    config_class = LlavaConfig
    # The tower's weights come from CLIP's own checkpoint unless the config says that they were trained
    # (`loading.py`).
    _keys_to_ignore_on_load_unexpected = (r"vision_tower\.",)

    def __init__(self, config: LlavaConfig) -> None:
        """Build the model with an unloaded tower."""
        super(LlamaForCausalLM, self).__init__(config)
        self.model = LlavaLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_model(self) -> LlavaLlamaModel:
        """Return the inner model."""
        return self.model

    def forward(  # noqa: PLR0913, PLR0917 - LLaVA's signature
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        images: Images | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        return_dict: bool | None = None,
        texts: Sequence[ImageText] | str | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model on a batch of prompts and images.

        Args:
            input_ids: Ids with ``IMAGE_TOKEN_INDEX`` where an image belongs, (B, L).
            attention_mask: (B, L); told by the padding's id if missing.
            position_ids: (B, L).
            past_key_values: Cache of earlier positions; newer versions of transformers pass it as ``cache``.
            inputs_embeds: (B, T, H) instead of ids and images.
            labels: (B, L); visual tokens are never supervised.
            use_cache: Transformers' argument, as the next two and ``return_dict``.
            output_attentions: See there.
            output_hidden_states: See there.
            images: Pixels of all images, (I, 3, height, width) or a list.
            image_sizes: Width and height of the images in pixels, for ``anyres`` and for reducers that leave
                padding out.
            return_dict: See above.
            texts: The question per image, several per image while training; read from the ids if missing.
            **kwargs: Llama's other arguments.

        Returns:
            Logits (B, T, V) over the spliced sequence, and the loss if there are labels: the mean over
            supervised tokens, or their sum divided by ``num_items_in_batch``.

        Raises:
            UserError: If placeholders and images do not match, or a needed question cannot be had.
        """
        if inputs_embeds is None and input_ids is not None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self._embed_inputs(
                    input_ids,
                    position_ids,
                    attention_mask,
                    past_key_values,
                    labels,
                    images,
                    image_sizes,
                    texts,
                )
            )
        if labels is not None and kwargs.get("num_items_in_batch") is None:
            # The mean over what is supervised; 0, not 0/0, where nothing is.
            kwargs["num_items_in_batch"] = count_supervised(labels).clamp(min=1)
        settings = {
            "use_cache": use_cache,
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
            "return_dict": return_dict,
        }
        kwargs |= {name: value for name, value in settings.items() if value is not None}
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **{CACHE_ARGUMENT: past_key_values, **kwargs},
        )

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write weights and config so that they load from their new folder as from where they came from.

        Args:
            save_directory: Where to; made if need be.
            is_main_process: Transformers' argument.
            state_dict: The weights, where they had to be gathered. CLIP is left out unless it was trained.
            **kwargs: Transformers' other arguments.

        Raises:
            UserError: If the weights are quantized, which no checkpoint of this kind can hold.
        """
        if getattr(self, "is_quantized", False):
            raise UserError("8-bit and 4-bit weights cannot be saved; load the model without quantization")
        complete_config(self, Path(save_directory))
        weights = full_state_dict(self, state_dict)
        with valid_generation_config(self):
            super().save_pretrained(save_directory, is_main_process, weights, **kwargs)
        if is_main_process:
            share_weights(Path(save_directory))

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        texts: Sequence[ImageText] | str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Answer a batch of prompts; transformers' generation arguments apply.

        Args:
            inputs: Ids (B, L), padded on either side; also accepted as ``input_ids``.
            images: Pixels of all images, (I, 3, height, width) or a list.
            image_sizes: Width and height of the images in pixels, for ``anyres`` and for reducers that leave
                padding out.
            texts: The question per image; read from the ids if missing.
            **kwargs: ``attention_mask`` (B, L), told by the padding's id if missing, or ``inputs_embeds`` (B,
                T, H) instead of ids, and transformers' others.

        Returns:
            The ids of the answers alone, (B, new tokens).

        Raises:
            UserError: If placeholders and images do not match, or a needed question cannot be had.
        """
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            return super().generate(**kwargs)
        kwargs.pop("position_ids", None)
        # A new token follows the last position, so whatever the caller's padding was, it moves to the left.
        batch = self.prompt_encoder.splice(
            ids,
            kwargs.pop("attention_mask", None),
            None,
            images,
            image_sizes=image_sizes,
            texts=texts,
            side="left",
        )
        return super().generate(
            inputs_embeds=batch.embeddings, attention_mask=batch.attention_mask.long(), **kwargs
        )


AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM)
