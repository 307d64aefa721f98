"""LLaVA-1.5 with TRIM: a vision-language model that reads only what the question is about."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llava import terminal
from llava.factories import register_with_factories

if TYPE_CHECKING:
    from llava.assistant import Assistant
    from llava.engine.base import Generation
    from llava.messages import Answer, Failure, Message, Request
    from llava.model.builder import load_pretrained_model
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

__version__ = "0.1.0"

if terminal.runs_a_command():  # before it imports what takes seconds, in which it may be interrupted
    terminal.prepare_terminal()

# Where each public name lives: it is imported on first use, so that `import llava` needs no torch.
_HOMES = {
    "Answer": "llava.messages",
    "Assistant": "llava.assistant",
    "Generation": "llava.engine.base",
    "Failure": "llava.messages",
    "Message": "llava.messages",
    "Request": "llava.messages",
    "LlavaConfig": "llava.model.language_model.llava_llama",
    "LlavaLlamaForCausalLM": "llava.model.language_model.llava_llama",
    "load_pretrained_model": "llava.model.builder",
}

__all__ = [
    "Answer",
    "Assistant",
    "Failure",
    "Generation",
    "LlavaConfig",
    "LlavaLlamaForCausalLM",
    "Message",
    "Request",
    "__version__",
    "load_pretrained_model",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'llava' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


register_with_factories()
