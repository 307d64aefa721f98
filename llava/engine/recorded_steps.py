"""Short passes of the language model, replayed as CUDA graphs.

Shapes: R rows, L positions of the longest prompt, C columns of the cache, H width of the language model, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from llava.engine.row_cache import LayerShapes, RowCache, pad_left
from llava.internals import CACHE_ARGUMENT, attention_is, attention_of
from llava.model.cuda_graphs import CudaGraphs, Recorder, Recordings
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

PREFILL_POSITIONS = 1024  # of a recorded pass, padding included; more take longer to compute than to start
PROMPT_STEP, COLUMN_STEP, ROW_STEP = 64, 128, 4  # up to which shapes are rounded: recordings serve again
FEWEST_POSITIONS = PREFILL_POSITIONS  # that memory is taken for, so that of prompts never has to grow
KEPT_POSITIONS = 8192  # that memory is kept for while nothing runs; of a 7B model in 16 bits, 4 GiB
# PyTorch's is what is recorded: flash-attn's takes no mask, and asks the host where padding ends.
RECORDED_ATTENTION = ("sdpa", "flash_attention_2")


def round_up(number: int, step: int) -> int:
    """Return the next multiple of ``step``."""
    return -(-number // step) * step


def recorder_for(model: LlavaLlamaForCausalLM) -> Recorder | None:
    """Return what records a language model's passes; None where they cannot be or nothing is gained."""
    weights = _weights(model)
    device = weights[0].device
    serves = (
        device.type == "cuda"
        and all(weight.device == device and weight.is_floating_point() for weight in weights)
        and not any(hasattr(module, "_hf_hook") for module in model.modules())
        and not getattr(model, "is_quantized", False)
        and attention_of(model) in RECORDED_ATTENTION
    )
    return CudaGraphs(device) if serves else None


def _weights(model: LlavaLlamaForCausalLM) -> list[Tensor]:
    """Return what the language model multiplies with."""
    inner = model.get_model()
    outer = (inner.embed_tokens.weight, inner.norm.weight, model.lm_head.weight)
    return [*inner.layers.parameters(), *outer]


class RecordedSteps:
    """Decodes, and runs short prompts, by recordings of the language model's passes.

    Rows, columns and prompts are padded to a few shapes. What is padding is masked, so it changes nothing but
    the order in which sums are rounded.

    Args:
        model: In evaluation mode.
        recorder: Records its passes.
    """

    def __init__(self, model: LlavaLlamaForCausalLM, recorder: Recorder) -> None:
        self._model = model
        self._decode = Recordings(recorder, self._decode_pass)
        self._prefill = Recordings(recorder, self._prefill_pass)
        self._running = _Memory()
        self._prompts = _Memory()
        self._places = self._weight_places()

    def _weight_places(self) -> list[int]:
        return [weight.data_ptr() for weight in _weights(self._model)]

    def check_weights(self) -> None:
        """Forget the recordings if weights are not where they were."""
        places = self._weight_places()
        if places != self._places:
            self.forget()
            self._places = places

    def forget(self) -> None:
        """Forget all recordings; rows that run stay where they are."""
        self._decode.forget()
        self._prefill.forget()

    def rest(self) -> None:
        """Give back memory of more rows than are worth keeping it for, because none runs."""
        if self._running.positions > KEPT_POSITIONS:
            self._decode.forget()
            self._running = _Memory()

    def release(self) -> None:
        """Forget all recordings and give back all memory; no row may run."""
        self.forget()
        self._running = _Memory()
        self._prompts = _Memory()

    def make_rows(self, rows: int, columns: int) -> RowCache:
        """Return memory for so many rows and columns or more, in which the rows of before may still lie."""
        shape = (round_up(rows, ROW_STEP) if rows > 2 else rows, round_up(columns, COLUMN_STEP))
        if 0 < self._running.positions < prod(shape):
            self._decode.forget()  # since the memory will be somewhere else
        return RowCache(self._stacks(self._running, *shape))

    def decode(self, cache: RowCache, tokens: Sequence[int]) -> Tensor:
        """Run one token of every row; returns the logits of the next ones, (B, V), for the moment.

        Args:
            cache: From `make_rows`, with room for a column; the new one is in use afterwards.
            tokens: Of the rows in use.
        """
        rows, column = cache.stacks[0].shape[2], cache.columns
        unused = rows - len(tokens)
        starts = [column - length for length in cache.lengths]
        numbers = torch.tensor([*tokens, *[0] * unused, *starts, *[column] * unused, column])
        logits = self._decode.replay(numbers, rows=rows, columns=cache.capacity)
        return logits[: len(tokens)]

    def takes(self, lengths: Sequence[int]) -> bool:
        """Tell whether prompts of these lengths are one short pass."""
        return len(lengths) * round_up(max(lengths), PROMPT_STEP) <= PREFILL_POSITIONS

    def prefill(self, prompts: Sequence[Tensor]) -> tuple[Tensor, RowCache]:
        """Run whole prompts (L_i, H).

        Returns:
            The logits of their next tokens, (R, V), and a cache of their positions, which lies where that of
            the next call will.
        """
        lengths = [len(prompt) for prompt in prompts]
        columns = round_up(max(lengths), PROMPT_STEP)
        embeddings, _ = pad_left(prompts, columns)
        starts = torch.tensor([columns - length for length in lengths])
        logits = self._prefill.replay(embeddings, starts)
        return logits.clone(), RowCache(self._stacks(self._prompts, len(prompts), columns), lengths, columns)

    def _stacks(self, memory: _Memory, rows: int, columns: int) -> list[Tensor]:
        return memory.shaped(LayerShapes.of(self._model, self._model.dtype), rows, columns)

    def _decode_pass(self, numbers: Tensor, *, rows: int, columns: int) -> Tensor:
        """Run the tokens (R,) of rows that start (R,) in a column and reach another (1,); logits (R, V)."""
        cache = RowCache(self._stacks(self._running, rows, columns))
        tokens, starts, column = numbers.split([rows, rows, 1])
        return self._run(self._model.get_input_embeddings()(tokens)[:, None], starts, column, cache)

    def _prefill_pass(self, embeddings: Tensor, starts: Tensor) -> Tensor:
        """Run prompts (R, L, H) that start (R,) somewhere behind padding; logits of the last, (R, V)."""
        cache = RowCache(self._stacks(self._prompts, *embeddings.shape[:2]))
        return self._run(embeddings, starts, starts.new_zeros(1), cache)

    def _run(self, embeddings: Tensor, starts: Tensor, column: Tensor, cache: RowCache) -> Tensor:
        """Run new positions (R, L, H) from a column (1,) on; rows start (R,) somewhere; logits (R, V)."""
        every = torch.arange(cache.capacity, device=starts.device)
        own = column + torch.arange(embeddings.shape[1], device=starts.device)  # (L,)
        # Padding sees itself, since what sees nothing would be no number and spoil what it is masked in.
        seen = (every >= starts[:, None, None]) & (every <= own[:, None]) | (every == own[:, None])
        mask = torch.zeros_like(seen, dtype=embeddings.dtype).masked_fill(~seen, -torch.inf)  # (R, L, C)
        with attention_is(self._model, "sdpa"):
            return self._model(
                inputs_embeds=embeddings,
                attention_mask=mask[:, None],
                position_ids=(own - starts[:, None]).clamp(min=0),
                use_cache=True,
                logits_to_keep=1,
                **{CACHE_ARGUMENT: cache.layers(own, cache.capacity)},
            ).logits[:, -1]


class _Memory:
    """Memory of a cache, which keeps its place while it takes other shapes.

    Attributes:
        positions: For how many there is memory.
    """

    def __init__(self) -> None:
        self.positions = 0
        self._flat: list[Tensor] = []
        self._shapes: LayerShapes | None = None

    def shaped(self, shapes: LayerShapes, rows: int, columns: int) -> list[Tensor]:
        """Return it in the shape of a `RowCache`; it is somewhere else afterwards if it has to grow."""
        if self.positions < rows * columns or shapes != self._shapes:
            # A quarter more than is needed, so that it does not grow with every column.
            positions = max(rows * columns * 5 // 4, FEWEST_POSITIONS)
            self.positions, self._flat = 0, []
            # A layer stays within its own part, so that rows can be moved one layer at a time.
            self._flat = [one.flatten(1) for one in shapes.zeros(1, positions)]
            self.positions, self._shapes = positions, shapes
        shape = (2, rows, shapes.heads, columns, shapes.width)
        return [flat[:, : prod(shape)].unflatten(1, shape) for flat in self._flat]
