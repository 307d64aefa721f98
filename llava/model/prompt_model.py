"""What of a LLaVA embeds prompts, without the layers of the language model: an engine elsewhere has those."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llava.model.llava_arch import LlavaMetaForCausalLM, LlavaMetaModel


class _EmbeddingTable(nn.Module):
    """The embedding table, under the name that it has in a language model."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)


class _PromptModules(LlavaMetaModel, _EmbeddingTable):
    """The embedding table with vision tower and projector beside it."""


class LlavaPromptModel(LlavaMetaForCausalLM, nn.Module):
    """Vision tower, projector and embedding table, under the names that they have in a LLaVA model.

    Args:
        config: Of the full model.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = _PromptModules(config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.generation_config: GenerationConfig | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Type of the embeddings."""
        return self.model.embed_tokens.weight.dtype

    def get_model(self) -> _PromptModules:
        """Return what holds the modules."""
        return self.model

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding table."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> None:
        """Return None: there is no head."""

    def resize_token_embeddings(self, tokens: int, mean_resizing: bool = False) -> None:
        """Give the embedding table as many rows as there are ``tokens``; new ones are not initialized."""
        del mean_resizing
        old = self.model.embed_tokens
        new = nn.Embedding(
            tokens, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype
        ).requires_grad_(False)
        kept = min(tokens, old.num_embeddings)
        new.weight[:kept] = old.weight[:kept]
        self.model.embed_tokens = new
        self.config.vocab_size = tokens
