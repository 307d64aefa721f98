"""The model: vision tower, reducer, projector, language model, and how checkpoints become one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

__all__ = ["LlavaConfig", "LlavaLlamaForCausalLM"]


def __getattr__(name: str) -> Any:
    """Import a model class under LLaVA's name when it is first asked for, not with every submodule."""
    if name not in __all__:
        raise AttributeError(f"module 'llava.model' has no attribute {name!r}")
    from llava.model.language_model import llava_llama

    return getattr(llava_llama, name)
