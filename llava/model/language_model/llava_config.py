"""The config of a LLaVA model over Llama."""

import os
from typing import Any

from transformers import AutoConfig, LlamaConfig


class LlavaConfig(LlamaConfig):
    """A Llama config with LLaVA's ``mm_*`` keys."""

    model_type = "llava_llama"

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write config.json, where null stands for no reduction, since published TRIM refuses ``none``.

        Args:
            save_directory: Where to; made if need be.
            push_to_hub: Transformers' argument.
            **kwargs: Transformers' other arguments.
        """
        if getattr(self, "mm_vision_token_reduce_func", None) == "none":
            self.update({"mm_vision_token_reduce_func": None})
        super().save_pretrained(save_directory, push_to_hub, **kwargs)


AutoConfig.register(LlavaConfig.model_type, LlavaConfig)
