"""The config of a LLaVA model over Llama."""

from transformers import AutoConfig, LlamaConfig


class LlavaConfig(LlamaConfig):
    """A Llama config with LLaVA's ``mm_*`` keys."""

    model_type = "llava_llama"


AutoConfig.register(LlavaConfig.model_type, LlavaConfig)
