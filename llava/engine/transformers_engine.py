"""The language model in this process, by transformers.

Shapes: B prompts, L positions of the longest, H width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from llava.engine.base import Generation
from llava.internals import CACHE_ARGUMENT
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM


class TransformersEngine:
    """Decodes token by token, so that answers can be streamed, timed and given up at any step.

    Args:
        model: In evaluation mode.
        end_ids: Tokens that end an answer, beside those that the model's generation config names.
    """

    def __init__(self, model: LlavaLlamaForCausalLM, end_ids: Sequence[int]) -> None:
        configured = model.generation_config.eos_token_id
        named = configured if isinstance(configured, list) else [configured]
        self.model = model
        self.end_ids = {*end_ids, *(end for end in named if end is not None)}

    def stream(self, prompts: Sequence[Tensor], options: Generation) -> Iterator[list[int | None]]:
        """Continue a batch of (L_i, H) prompts step by step; see `Engine.stream`."""
        embeddings, mask = pad_left(prompts)
        if options.num_beams > 1:
            yield from self._beam_search(embeddings, mask, options)
            return
        warpers, cache = _warpers(options), DynamicCache()
        running = [True] * len(prompts)
        for _ in range(options.max_new_tokens):
            tokens = self._step(embeddings, mask, cache, warpers)
            running = [
                going and token not in self.end_ids
                for going, token in zip(running, tokens.tolist(), strict=True)
            ]
            if not any(running):
                return
            yield [token if going else None for going, token in zip(running, tokens.tolist(), strict=True)]
            embeddings = self._embed(tokens)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)

    @torch.inference_mode()
    def _embed(self, tokens: Tensor) -> Tensor:
        """Embed the last tokens (B,) as the next step's positions, (B, 1, H)."""
        return self.model.get_input_embeddings()(tokens).unsqueeze(1)

    @torch.inference_mode()
    def _step(
        self, embeddings: Tensor, mask: Tensor, cache: DynamicCache, warpers: LogitsProcessorList
    ) -> Tensor:
        """Run new positions (B, L, H) under the mask of all positions and choose the next tokens, (B,)."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        logits = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE_ARGUMENT: cache},
        ).logits[:, -1]
        if not warpers:
            return logits.argmax(dim=-1)
        probabilities = warpers(None, logits.float()).softmax(dim=-1)
        return probabilities.multinomial(1).squeeze(1)

    def _beam_search(
        self, embeddings: Tensor, mask: Tensor, options: Generation
    ) -> Iterator[list[int | None]]:
        """Search with beams over (B, L, H) prompts; nothing is certain before the end of the search."""
        ids = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=mask,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.num_beams,
            do_sample=options.samples,
            temperature=float(options.temperature) if options.samples else None,
            top_p=options.top_p if options.samples else None,
            pad_token_id=min(self.end_ids),
            eos_token_id=sorted(self.end_ids),
        )
        running = [True] * len(ids)
        for tokens in ids.T.tolist():
            running = [
                going and token not in self.end_ids for going, token in zip(running, tokens, strict=True)
            ]
            yield [token if going else None for going, token in zip(running, tokens, strict=True)]


def pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad (L_i, H) prompts in front, where no next token is read.

    Returns:
        Embeddings (B, L, H), and a mask (B, L) that is 1 on what is no padding.
    """
    longest = max(map(len, prompts))
    embeddings = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[-1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=prompts[0].device)
    for row, prompt in enumerate(prompts):
        embeddings[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeddings, mask


def _warpers(options: Generation) -> LogitsProcessorList:
    """Return what shapes the (B, V) logits before a token is drawn; empty for the likeliest token."""
    warpers = LogitsProcessorList()
    if options.samples:
        warpers.append(TemperatureLogitsWarper(float(options.temperature)))
        if options.top_p is not None and options.top_p < 1:
            warpers.append(TopPLogitsWarper(options.top_p))
    return warpers
