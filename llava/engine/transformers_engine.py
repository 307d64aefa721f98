"""The language model in this process, by transformers, with requests that come and go between steps.

Shapes: B rows, one per running request, T cached positions of the longest, L positions of the longest prompt,
H width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llava.engine.answer_text import AnswerText
from llava.engine.base import Event, Generation
from llava.engine.requests import RequestQueue, RunningAnswer, WaitingRequest, seed_of
from llava.engine.stopwatch import Stopwatch
from llava.internals import CACHE_ARGUMENT, cache_of, cached_keys_and_values
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.placement import hand_over

MAX_ROWS = 16
MAX_POSITIONS = 32_768  # of all rows together; of a 7B model in 16 bits, 16 GiB
PREFIXES_KEPT, PREFIXES_REMEMBERED = 8, 256
SHORTEST_PREFIX = 16  # positions; a shorter one saves less than its own pass costs
LONGEST_PREFIX = 256  # positions; of a 7B model in 16 bits 128 MiB
# Positions whose products take as long as reading the weights once, and so as one more pass: an H100
# multiplies a 16-bit weight with 265 positions in that time.
PASS_POSITIONS = {"cpu": 32, "cuda": 256}


@dataclass(slots=True)
class _Row(RunningAnswer):
    """A request that is running."""

    warpers: LogitsProcessorList
    generator: torch.Generator | None
    positions: int  # that it may come to need
    cached: int  # that it has in the cache


class TransformersEngine(RequestQueue):
    """Decodes token by token for all requests at once (continuous batching).

    A request that has ended leaves the batch and frees its cache, and new ones enter between steps. A sampled
    answer depends on its own seed only.

    Args:
        model: In evaluation mode.
        tokenizer: Of the model.
        max_rows: The most requests that run at once.
        max_positions: The most cached positions of all of them; one request alone may have more.

    Attributes:
        prefilled_positions: That the language model has run of prompts so far, padding included.
        padded_positions: How many of them were padding.
    """

    def __init__(
        self,
        model: LlavaLlamaForCausalLM,
        tokenizer: PreTrainedTokenizerBase,
        max_rows: int = MAX_ROWS,
        max_positions: int = MAX_POSITIONS,
    ) -> None:
        super().__init__(tokenizer, model.generation_config, {"engine": "transformers"})
        self.model = model
        self.max_rows = max_rows
        self.max_positions = max_positions
        self.prefilled_positions = self.padded_positions = 0
        self._prefixes: OrderedDict[Hashable, list[tuple[Tensor, Tensor]]] = OrderedDict()
        self._seen_prefixes: OrderedDict[Hashable, None] = OrderedDict()
        self.clear()

    @property
    def cache_bytes(self) -> int:
        """What keys and values of all rows take, padding included."""
        return sum(one.nbytes for layer in cached_keys_and_values(self._cache) for one in layer)

    def clear(self) -> None:
        """Forget all requests."""
        super().clear()
        self.clear_prefixes()
        self._rows: list[_Row] = []
        self._cache = DynamicCache()  # of all rows
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=self.model.input_device)  # (B, T)

    def clear_prefixes(self) -> None:
        """Forget what prompts began with; see `Engine.clear_prefixes`."""
        self._prefixes.clear()
        self._seen_prefixes.clear()

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Prefill what has come, or else decode one token of all rows; see `Engine.step`."""
        events = self._drop_cancelled()
        admitted = self._admit()
        watch = Stopwatch(self.model.input_device)
        if admitted and admitted[0].generation.num_beams > 1:
            return events + list(self._search(admitted[0], watch))
        if admitted:
            logits = self._prefill(admitted)
            rows = self._rows[len(self._rows) - len(admitted) :]
        elif self._rows:
            logits = self._decode()
            rows = self._rows
        else:
            return events
        tokens = self._choose(logits, rows)
        share = watch.lap() / len(rows)
        happened = [row.advance(token, share) for row, token in zip(rows, tokens, strict=True)]
        self._keep_rows({event.id for event in happened if event.finished})
        return events + happened

    def _drop_cancelled(self) -> list[Event]:
        """End what was cancelled, waiting or running."""
        cancelled = self._take_cancelled([row.id for row in self._rows])
        self._keep_rows(set(cancelled))
        return [Event(request, finished="cancelled") for request in cancelled]

    def _admit(self) -> list[WaitingRequest]:
        """Take those that wait and have room, in their order; a search with beams runs alone."""
        admitted: list[WaitingRequest] = []
        with self._lock:
            while self._waiting and len(self._rows) + len(admitted) < self.max_rows:
                request = self._waiting[0]
                positions = [row.positions for row in self._rows]
                positions += [one.positions for one in (*admitted, request)]
                # All rows of a cache are as long as the longest.
                if len(positions) > 1 and len(positions) * max(positions) > self.max_positions:
                    break
                if request.generation.num_beams > 1 and admitted:
                    break
                admitted.append(self._waiting.popleft())
                if request.generation.num_beams > 1:
                    break
        return admitted

    def _prefill(self, requests: Sequence[WaitingRequest]) -> Tensor:
        """Run new prompts and add them as rows; returns the logits of their next tokens, (B, V)."""
        groups: dict[tuple[int, ...], list[WaitingRequest]] = {}
        for request in requests:
            groups.setdefault(_shared_prefix(request), []).append(request)
        pass_positions = PASS_POSITIONS.get(requests[0].embeddings.device.type, PASS_POSITIONS["cuda"])
        logits = [
            self._prefill_together([group[i] for i in bucket], prefix)
            for prefix, group in groups.items()
            for bucket in buckets([len(one.embeddings) for one in group], pass_positions)
        ]
        return torch.cat(logits)

    def _prefill_together(self, requests: Sequence[WaitingRequest], prefix: tuple[int, ...]) -> Tensor:
        """Run prompts that begin with the same prefix, and read that from the cache; logits (B, V).

        One that nobody shares its prefix with yet runs whole, since a short pass takes long for what it does;
        its prefix is kept if it has come before.
        """
        key = self._prefix_key(prefix, requests[0].embeddings)
        is_shared = len(requests) > 1 or key in self._prefixes
        shared = len(prefix) if is_shared else 0
        embeddings, mask = pad_left([request.embeddings[shared:] for request in requests])
        self.prefilled_positions += mask.numel()
        padding = mask.shape[1] - mask.sum(dim=1)
        self.padded_positions += mask.numel() - sum(len(one.embeddings) - shared for one in requests)
        cache = DynamicCache()
        if shared:
            rows = len(requests)
            cache = cache_of(
                tuple(one.expand(rows, -1, -1, -1) for one in layer)
                for layer in self._cached_prefix(prefix, requests[0].embeddings[:shared])
            )
            mask = F.pad(mask, (shared, 0), value=1)
        logits = self._run(embeddings, mask, cache)
        if prefix and not is_shared and self._comes_again(key):
            self._keep_prefix(key, len(prefix), cache)
        if shared and len(requests) > 1:
            cache, mask = _with_padding_first(cache, mask, padding, shared)
        self._join(cache, mask)
        self._rows += [self._row(request, logits.device) for request in requests]
        return logits

    @staticmethod
    def _prefix_key(ids: tuple[int, ...], embeddings: Tensor) -> Hashable:
        """Tell prefixes apart, also those of a model before and after it was moved or converted."""
        return ids, embeddings.device, embeddings.dtype

    def _comes_again(self, key: Hashable) -> bool:
        """Tell whether a prefix was there before: one that no other prompt has would be kept for nothing."""
        was_there = key in self._seen_prefixes
        self._seen_prefixes[key] = None
        self._seen_prefixes.move_to_end(key)
        if len(self._seen_prefixes) > PREFIXES_REMEMBERED:
            self._seen_prefixes.popitem(last=False)
        return was_there

    def _cached_prefix(self, ids: tuple[int, ...], embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values (1, heads, P, head width) of every layer for a prefix (P, H)."""
        key = self._prefix_key(ids, embeddings)
        if key not in self._prefixes:
            cache = DynamicCache()
            mask = torch.ones(1, len(ids), dtype=torch.long, device=embeddings.device)
            self._run(embeddings.unsqueeze(0), mask, cache)
            self.prefilled_positions += len(ids)
            self._keep_prefix(key, len(ids), cache)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _keep_prefix(self, key: Hashable, length: int, cache: DynamicCache) -> None:
        """Keep the first positions of a cache of one row, and let go of the prefix not used for longest."""
        self._prefixes[key] = [
            (keys[:, :, :length].clone(), values[:, :, :length].clone())
            for keys, values in cached_keys_and_values(cache)
        ]
        if len(self._prefixes) > PREFIXES_KEPT:
            self._prefixes.popitem(last=False)

    def _row(self, request: WaitingRequest, device: torch.device) -> _Row:
        """Begin the answer of a request."""
        return _Row(
            id=request.id,
            generation=request.generation,
            text=AnswerText(self.tokenizer, request.generation.stop),
            warpers=_warpers(request.generation),
            generator=_generator(request.generation, device),
            end_ids=self._ends_of(request.generation),
            positions=request.positions,
            cached=len(request.embeddings),
        )

    def _decode(self) -> Tensor:
        """Run the last token of every row; returns the logits of the next ones, (B, V)."""
        tokens = hand_over(torch.tensor([row.text.ids[-1] for row in self._rows]), self.model.input_device)
        embeddings = self.model.get_input_embeddings()(tokens).unsqueeze(1)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        logits = self._run(embeddings, self._mask, self._cache)
        for row in self._rows:
            row.cached += 1
        return logits

    def _run(self, embeddings: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Run new positions (B, L, H) under the mask (B, T) of all positions; logits of the last, (B, V)."""
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        return self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE_ARGUMENT: cache},
        ).logits[:, -1]

    def _join(self, cache: DynamicCache, mask: Tensor) -> None:
        """Put the cache and the mask (B, T) of new rows under those of the running ones."""
        if self._rows:
            length = max(self._mask.shape[1], mask.shape[1])
            cache = cache_of(
                tuple(_stack(old, new, length) for old, new in zip(own, others, strict=True))
                for own, others in zip(
                    cached_keys_and_values(self._cache), cached_keys_and_values(cache), strict=True
                )
            )
            mask = torch.cat([F.pad(one, (length - one.shape[1], 0)) for one in (self._mask, mask)])
        self._cache, self._mask = cache, mask

    def _keep_rows(self, ended: set[int]) -> None:
        """Take ended rows out of the batch, and positions that are padding in all others."""
        kept = [i for i, row in enumerate(self._rows) if row.id not in ended]
        if len(kept) == len(self._rows):
            return
        self._rows = [self._rows[i] for i in kept]
        if not kept:
            self._cache = DynamicCache()
            return
        first = self._mask.shape[1] - max(row.cached for row in self._rows)
        self._mask = self._mask[kept, first:]
        self._cache = cache_of(
            tuple(one[kept, :, first:] for one in layer) for layer in cached_keys_and_values(self._cache)
        )

    def _choose(self, logits: Tensor, rows: Sequence[_Row]) -> list[int]:
        """Choose the next token of every row from logits (B, V), each by its own settings."""
        likeliest = logits.argmax(dim=-1).tolist()
        return [
            self._choose_one(scores, row) if row.warpers or row.generation.min_new_tokens else token
            for scores, row, token in zip(logits, rows, likeliest, strict=True)
        ]

    def _choose_one(self, logits: Tensor, row: _Row) -> int:
        """Choose the next token of one row from logits (V,)."""
        scores = logits.float().unsqueeze(0)
        ids = torch.tensor([row.text.ids], dtype=torch.long, device=scores.device)
        if len(row.text.ids) < row.generation.min_new_tokens:
            scores[:, sorted(row.end_ids)] = -torch.inf
        scores = row.warpers(ids, scores)
        if row.generator is None:
            return int(scores.argmax())
        return int(scores.softmax(dim=-1).multinomial(1, generator=row.generator))

    def _search(self, request: WaitingRequest, watch: Stopwatch) -> Iterator[Event]:
        """Search with beams for one request; nothing is certain before the end of the search."""
        generation = request.generation
        device = request.embeddings.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            if generation.samples and generation.seed is not None:
                torch.manual_seed(generation.seed)
            ids = self.model.generate(
                inputs_embeds=request.embeddings.unsqueeze(0),
                attention_mask=torch.ones_like(request.embeddings[None, :, 0], dtype=torch.long),
                **_beam_settings(generation),
                pad_token_id=self.end_ids[0] if self.end_ids else 0,
                eos_token_id=self.end_ids or None,
            )[0].tolist()
        row = self._row(request, device)
        milliseconds = watch.lap()
        for token in ids:
            event = row.advance(token, milliseconds)
            yield event
            milliseconds = 0.0
            if event.finished:
                return
        yield row.end("stop", milliseconds)


def _shared_prefix(request: WaitingRequest) -> tuple[int, ...]:
    """Return the ids of a request's prefix, if it is worth a pass of its own and leaves something to run."""
    ids = request.prefix[:LONGEST_PREFIX]
    return ids if SHORTEST_PREFIX <= len(ids) < len(request.embeddings) else ()


def buckets(lengths: Sequence[int], pass_positions: int) -> list[list[int]]:
    """Divide prompts among passes so that padding and passes together cost least.

    Args:
        lengths: Positions of each prompt; all of a pass are padded to the longest.
        pass_positions: Positions that take as long as a further pass.

    Returns:
        The prompts of each pass, by their indices; each list and the longest of each descend.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    # The least cost of running all prompts from each on, and where the pass ends that begins with it.
    costs, ends = [0] * (len(order) + 1), [0] * len(order)
    for start in reversed(range(len(order))):
        costs[start], ends[start] = min(
            (lengths[order[start]] * (end - start) + pass_positions + costs[end], end)
            for end in range(start + 1, len(order) + 1)
        )
    found, start = [], 0
    while start < len(order):
        found.append(order[start : ends[start]])
        start = ends[start]
    return found


def _with_padding_first(
    cache: DynamicCache, mask: Tensor, padding: Tensor, shared: int
) -> tuple[DynamicCache, Tensor]:
    """Move what pads each row (B,) from behind its first ``shared`` positions to in front of them."""
    place = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    pads = padding.unsqueeze(1)
    source = torch.where(place < pads, place + shared, place - pads)
    source = torch.where(place < pads + shared, source, place)  # (B, T)
    moved = cache_of(
        tuple(one.gather(2, source.to(one.device)[:, None, :, None].expand_as(one)) for one in layer)
        for layer in cached_keys_and_values(cache)
    )
    return moved, mask.gather(1, source)


def _stack(keys: Tensor, new_keys: Tensor, length: int) -> Tensor:
    """Put two caches (B, heads, T, head width) under each other, padded in front to ``length`` positions."""
    return torch.cat([F.pad(one, (0, 0, length - one.shape[2], 0)) for one in (keys, new_keys)])


def pad_left(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad (L_i, H) prompts in front, where no next token is read.

    Returns:
        Embeddings (B, L, H), and a mask (B, L) that is 1 on what is not padding.
    """
    longest = max(map(len, prompts))
    embeddings = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[-1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=prompts[0].device)
    for row, prompt in enumerate(prompts):
        embeddings[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeddings, mask


def _beam_settings(generation: Generation) -> dict[str, Any]:
    """Return arguments of transformers' search, none of which is left to the checkpoint's defaults."""
    sampling = {"temperature": float(generation.temperature), "top_p": generation.top_p or 1.0, "top_k": 0}
    return {
        "max_new_tokens": generation.max_new_tokens,
        "min_new_tokens": generation.min_new_tokens or None,
        "min_length": 0,
        "num_beams": generation.num_beams,
        "num_return_sequences": 1,
        "do_sample": generation.samples,
        "repetition_penalty": float(generation.repetition_penalty),
        "no_repeat_ngram_size": 0,
        "length_penalty": 1.0,
        "early_stopping": False,
        **(sampling if generation.samples else dict.fromkeys(sampling)),
    }


def _warpers(generation: Generation) -> LogitsProcessorList:
    """Return what shapes the (1, V) logits before a token is chosen; empty for the likeliest token."""
    warpers = LogitsProcessorList()
    if generation.repetition_penalty != 1:
        warpers.append(RepetitionPenaltyLogitsProcessor(float(generation.repetition_penalty)))
    if generation.samples:
        warpers.append(TemperatureLogitsWarper(float(generation.temperature)))
        if generation.top_p is not None and generation.top_p < 1:
            warpers.append(TopPLogitsWarper(generation.top_p))
    return warpers


def _generator(generation: Generation, device: torch.device) -> torch.Generator | None:
    """Return the request's own source of chance, None if it needs none."""
    if not generation.samples:
        return None
    return torch.Generator(device).manual_seed(seed_of(generation))
