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
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from llava.engine.answer_text import AnswerText
from llava.engine.base import Event, Generation
from llava.engine.recorded_steps import RecordedSteps
from llava.engine.requests import RequestQueue, RunningAnswer, WaitingRequest, seed_of
from llava.engine.row_cache import LayerShapes, RowCache, pad_left
from llava.engine.stopwatch import Stopwatch
from llava.internals import CACHE_ARGUMENT
from llava.model.cuda_graphs import Recorder
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.placement import attention_of_any_length, hand_over

MAX_ROWS = 16
MAX_POSITIONS = 32_768  # of all rows together; of a 7B model in 16 bits, 16 GiB
ROOM = 128  # columns that memory is taken for ahead of new tokens
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
        recorded: Short passes of the model that are replayed; none unless `record` was called.
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
        self.recorded: RecordedSteps | None = None
        self.max_rows = max_rows
        self.max_positions = max_positions
        self.prefilled_positions = self.padded_positions = 0
        self._prefixes: OrderedDict[Hashable, list[Tensor]] = OrderedDict()
        self._seen_prefixes: OrderedDict[Hashable, None] = OrderedDict()
        self.clear()

    def record(self, recorder: Recorder | None) -> None:
        """Let short passes be replayed, as CUDA graphs; None starts every kernel by itself. No row may run.

        Args:
            recorder: From `recorder_for`.
        """
        self.recorded = None if recorder is None else RecordedSteps(self.model, recorder)

    @property
    def cache_bytes(self) -> int:
        """What keys and values of all rows take, padding included."""
        return self._cache.nbytes

    def clear(self) -> None:
        """Forget all requests."""
        super().clear()
        self._rows: list[_Row] = []
        self.clear_prefixes()
        self._cache = RowCache()  # of all rows
        if self.recorded is not None:
            self.recorded.release()

    def clear_prefixes(self) -> None:
        """Forget what prompts began with; see `Engine.clear_prefixes`."""
        if self.recorded is not None:
            self.recorded.forget()
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
        if self.recorded is not None:
            self.recorded.check_weights()
        groups: dict[tuple[int, ...], list[WaitingRequest]] = {}
        for request in requests:
            groups.setdefault(_shared_prefix(request), []).append(request)
        pass_positions = PASS_POSITIONS.get(requests[0].embeddings.device.type, PASS_POSITIONS["cuda"])
        found = []
        for prefix, group in groups.items():
            for bucket in buckets([len(one.embeddings) for one in group], pass_positions):
                together = [group[i] for i in bucket]
                logits, cache = self._prefill_together(together, prefix)
                running = range(len(self._rows))
                self._rows += [self._row(request, logits.device) for request in together]
                self._arrange(running, cache)
                found.append(logits)
        return torch.cat(found)

    def _prefill_together(
        self, requests: Sequence[WaitingRequest], prefix: tuple[int, ...]
    ) -> tuple[Tensor, RowCache]:
        """Run prompts that begin with the same prefix, and read that from the cache; logits (B, V).

        One that nobody shares its prefix with yet runs whole, since a short pass takes long for what it does;
        its prefix is kept if it has come before.
        """
        prompts = [request.embeddings for request in requests]
        lengths = list(map(len, prompts))
        if self.recorded is not None and self.recorded.takes(lengths):
            return self._prefill_recorded(prompts)
        key = self._prefix_key(prefix, prompts[0])
        is_shared = len(requests) > 1 or key in self._prefixes
        shared = len(prefix) if is_shared else 0
        embeddings, mask = pad_left([prompt[shared:] for prompt in prompts])
        self._count(mask.numel(), sum(lengths) - shared * len(prompts))
        padding = mask.shape[1] - mask.sum(dim=1)
        mask = F.pad(mask, (shared, 0), value=1)
        room = min(max(request.generation.max_new_tokens for request in requests), ROOM)
        cache = self._new_cache(len(prompts), mask.shape[1] + room, embeddings.dtype)
        if shared:
            cache.put_prefix(self._cached_prefix(prefix, prompts[0][:shared]))
        logits = self._run(embeddings, mask, cache)
        cache.lengths, cache.columns = lengths, mask.shape[1]
        if prefix and not is_shared and self._comes_again(key):
            self._keep_prefix(key, len(prefix), cache)
        if shared and len(requests) > 1:
            cache.move_padding_first(padding, shared)
        return logits, cache

    def _prefill_recorded(self, prompts: Sequence[Tensor]) -> tuple[Tensor, RowCache]:
        """Run prompts (L_i, H) whole: where a pass takes no less for being shorter, prefixes save nothing."""
        assert self.recorded is not None
        logits, cache = self.recorded.prefill(prompts)
        self._count(len(prompts) * cache.columns, sum(cache.lengths))
        return logits, cache

    def _count(self, positions: int, wanted: int) -> None:
        """Count the positions of a prefill, and those among them that no prompt has."""
        self.prefilled_positions += positions
        self.padded_positions += positions - wanted

    def _new_cache(self, rows: int, columns: int, dtype: torch.dtype) -> RowCache:
        return RowCache(LayerShapes.of(self.model, dtype).zeros(rows, columns))

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

    def _cached_prefix(self, ids: tuple[int, ...], embeddings: Tensor) -> list[Tensor]:
        """Return keys and values for a prefix (P, H); see `RowCache.put_prefix`."""
        key = self._prefix_key(ids, embeddings)
        if key not in self._prefixes:
            cache = self._new_cache(1, len(ids), embeddings.dtype)
            self._run(embeddings.unsqueeze(0), torch.ones(1, len(ids), dtype=torch.long), cache)
            self._count(len(ids), len(ids))
            self._keep_prefix(key, len(ids), cache)
        self._prefixes.move_to_end(key)
        return self._prefixes[key]

    def _keep_prefix(self, key: Hashable, length: int, cache: RowCache) -> None:
        """Keep the first positions of a cache of one row, and let go of the prefix not used for longest."""
        self._prefixes[key] = cache.prefix(length)
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
        )

    def _decode(self) -> Tensor:
        """Run the last token of every row; returns the logits of the next ones, (B, V)."""
        cache = self._cache
        if cache.columns == cache.capacity:
            self._arrange(range(len(self._rows)))
            cache = self._cache
        tokens = [row.text.ids[-1] for row in self._rows]
        if self.recorded is not None:
            logits = self.recorded.decode(cache, tokens)
        else:
            ids = hand_over(torch.tensor(tokens), self.model.input_device)
            embeddings = self.model.get_input_embeddings()(ids).unsqueeze(1)
            logits = self._run(embeddings, F.pad(cache.mask(cache.columns), (0, 1), value=1), cache)
        cache.lengths = [length + 1 for length in cache.lengths]
        cache.columns += 1
        return logits

    def _run(self, embeddings: Tensor, mask: Tensor, cache: RowCache) -> Tensor:
        """Run new positions (B, L, H) under the mask (B, T) of all positions; logits of the last, (B, V)."""
        columns = torch.arange(mask.shape[1])[-embeddings.shape[1] :]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -embeddings.shape[1] :]
        with attention_of_any_length():
            return self.model(
                inputs_embeds=embeddings,
                # Rows without padding get no mask, which the device would have to be asked about.
                attention_mask=None if bool(mask.all()) else hand_over(mask, embeddings.device),
                position_ids=hand_over(positions, embeddings.device),
                use_cache=True,
                logits_to_keep=1,
                **{CACHE_ARGUMENT: cache.layers(columns, mask.shape[1])},
            ).logits[:, -1]

    def _arrange(self, kept: Sequence[int], *new: RowCache) -> None:
        """Let the cache have these of its rows, and behind them those of new ones, with room for tokens."""
        sources: list[tuple[RowCache, Sequence[int]]] = [(self._cache, kept)] if kept else []
        sources += [(one, range(len(one.lengths))) for one in new]
        if not sources:
            self._cache = RowCache()
            if self.recorded is not None:
                self.recorded.rest()
            return
        (first, _), *others = sources
        room = max(row.generation.max_new_tokens - len(row.text.ids) for row in self._rows)
        columns = max(cache.lengths[row] for cache, rows in sources for row in rows) + min(room, ROOM)
        if self.recorded is not None:
            cache = self.recorded.make_rows(len(self._rows), columns)
        elif first is not self._cache and not others:
            self._cache = first  # alone, and with room
            return
        else:
            cache = self._new_cache(len(self._rows), columns, first.stacks[0].dtype)
        cache.fill(sources)
        self._cache = cache

    def _keep_rows(self, ended: set[int]) -> None:
        """Take ended rows out of the batch, and columns that none of the others has."""
        kept = [i for i, row in enumerate(self._rows) if row.id not in ended]
        if len(kept) < len(self._rows):
            self._rows = [self._rows[i] for i in kept]
            self._arrange(kept)

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
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), attention_of_any_length():
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
