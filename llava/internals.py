"""What this package uses of other libraries beyond their public interfaces: all of it, each with its reason.

Only `llava.factories`, which may import neither torch nor transformers, has its own.

``tests/test_internals.py`` says in a sentence which of it a new version of a library has changed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Queue
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_utils import set_zero3_state

# transformers 5.24 has a new name for the cache of keys and values, and warns of the old one.
CACHE_ARGUMENT = (
    "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
)

# Methods of transformers' Trainer that `LLaVATrainer` replaces or calls, with the parameters it counts on:
# there is no public way to choose the order of samples, what a checkpoint holds, and when it gets its name.
TRAINER_METHODS: dict[str, tuple[str, ...]] = {
    "_get_train_sampler": ("self", "train_dataset"),
    "_run_epoch": ("self", "epoch"),
    "_get_output_dir": ("self", "trial"),
    "_save_checkpoint": ("self", "model", "trial"),
    "_save": ("self", "output_dir", "state_dict"),
    "_save_optimizer_and_scheduler": ("self", "output_dir"),
    "_prepare_for_training": ("self", "max_steps", "train_dataloader", "resume_from_checkpoint"),
    "_load_optimizer_and_scheduler": ("self", "checkpoint"),
    "_load_from_checkpoint": ("self", "resume_from_checkpoint", "model"),
    "_get_grad_norm": ("self", "model", "grad_norm"),
    "_issue_warnings_after_load": ("self", "load_result"),
}


def waiting_queue(engine: Any) -> Queue[Any]:
    """Return where the thread that steps a vLLM engine waits for outputs, or for an error to raise.

    vLLM 0.32 itself puts no error there when its process is killed, and lets the thread wait for ever.

    Args:
        engine: A ``LLMEngine`` with a process of its own.
    """
    return engine.engine_core.outputs_queue


def build_model(model_class: type[PreTrainedModel], config: Any, attn_implementation: str) -> Any:
    """Build a model from a config alone, never split over processes.

    The public constructor cannot be told which attention to use. Under DeepSpeed's ZeRO-3 transformers splits
    what is built; `set_zero3_state` is how its own loader prevents that.

    Args:
        model_class: Of transformers.
        config: Of the model.
        attn_implementation: Name of transformers' attention.
    """
    with set_zero3_state():
        return model_class._from_config(config, attn_implementation=attn_implementation)


@contextmanager
def attention_is(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let a model compute with another of transformers' attentions for a while.

    `set_attn_implementation` is public and checks what an attention needs, but there is no public way to read
    which one it was.

    Args:
        model: Of transformers.
        name: Of the attention.
    """
    config: Any = model.config
    was = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = was


def attention_of(model: PreTrainedModel) -> str:
    """Return the name of the attention that a model computes with; see above."""
    config: Any = model.config
    return config._attn_implementation


def execution_device(module: nn.Module) -> torch.device:
    """Return where a module computes whose weights accelerate keeps elsewhere.

    accelerate hangs a hook on such a module and has no function that says where it brings the weights.
    """
    for hook in _hooks_of(module):
        if getattr(hook, "execution_device", None) is not None:
            return torch.device(hook.execution_device)
    raise ValueError("accelerate does not say where this module computes")


def offloaded_weight(module: nn.Module, name: str) -> Tensor:
    """Read a module's own weight (...) that accelerate keeps elsewhere, in memory or on disk; see above."""
    for hook in _hooks_of(module):
        if getattr(hook, "offload", False):
            return hook.weights_map[name]
    raise ValueError("accelerate does not say where this module's weights are")


def _hooks_of(module: nn.Module) -> Iterator[Any]:
    """Go through accelerate's hooks on a module, those that others hold among them."""
    waiting: list[Any] = [module._hf_hook]
    while waiting:
        hook = waiting.pop()
        yield hook
        waiting += getattr(hook, "hooks", ())


def added_token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the ids of a tokenizer's added tokens by text.

    The public property sorts and copies them at every call, and tokenizing asks once per piece.
    """
    return tokenizer._added_tokens_encoder


def added_token(tokenizer: PreTrainedTokenizerBase, piece: str) -> Any:
    """Return how an added token treats the whitespace around it, None for any other piece; see above."""
    return tokenizer._added_tokens_decoder.get(tokenizer._added_tokens_encoder.get(piece, -1))


def split_at_added_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    """Cut a text at its added tokens, where transformers' own SentencePiece tokenizers cut it."""
    return tokenizer.tokens_trie.split(text)


def use_one_gpu(training_args: Any) -> None:
    """Let transformers' Trainer use one GPU where a process has several.

    Its default is ``nn.DataParallel``, which cannot deal out texts; the number of GPUs can only be read.
    """
    training_args._n_gpu = 1
