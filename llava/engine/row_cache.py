"""Keys and values of running requests, in memory that is taken once and written in place.

Shapes: R rows of memory of which B are in use, T columns in use, C columns of memory, L new positions, H
width of the language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicLayer

from llava.internals import execution_device
from llava.model.placement import hand_over


@dataclass(frozen=True, slots=True)
class LayerShapes:
    """What the cache of a language model looks like.

    Attributes:
        devices: How many layers one after the other compute on which device.
        heads: Of keys and values.
        width: Of a head.
        dtype: Of keys and values.
    """

    devices: tuple[tuple[torch.device, int], ...]
    heads: int
    width: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any, dtype: torch.dtype) -> LayerShapes:
        """Read the shapes off a Llama that computes in ``dtype``."""
        config = model.config
        where = [_device_of(layer.self_attn.k_proj) for layer in model.get_model().layers]
        return cls(
            devices=tuple((device, len(list(layers))) for device, layers in groupby(where)),
            heads=config.num_key_value_heads,
            width=head_width(config),
            dtype=dtype,
        )

    def zeros(self, rows: int, columns: int) -> list[Tensor]:
        """Take memory, (layers, 2, R, heads, C, width) on each device."""
        shape = (2, rows, self.heads, columns, self.width)
        # Written to outside of inference mode too, where CUDA graphs are recorded.
        with torch.inference_mode(False):
            return [torch.zeros(n, *shape, dtype=self.dtype, device=device) for device, n in self.devices]


def head_width(config: Any) -> int:
    """Return the width of one head of a Llama's attention."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cache_bytes_per_position(model: Any) -> int:
    """Return the bytes that the keys and values of one position of a Llama take."""
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width(config)
    return numbers * model.dtype.itemsize


def _device_of(module: nn.Module) -> torch.device:
    """Return where a linear layer computes, also when accelerate keeps its weights elsewhere."""
    weight: Any = module.weight
    return execution_device(module) if weight.is_meta else weight.device


class _WrittenInPlace(DynamicLayer):
    """One layer of a `RowCache`, as transformers' attention asks for it.

    Args:
        keys_and_values: (2, R, heads, C, width).
        columns: Where the new positions go, (L,).
        end: How many columns are read.
    """

    def __init__(self, keys_and_values: Tensor, columns: Tensor, end: int) -> None:
        super().__init__()
        self.keys, self.values = keys_and_values[:, :, :, :end].unbind()
        self.is_initialized = True
        self._columns = hand_over(columns, self.keys.device)

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new keys and values (R, heads, L, width), and return all of them."""
        self.keys.index_copy_(2, self._columns, keys)
        self.values.index_copy_(2, self._columns, values)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Return how many columns were there before the new ones."""
        return self.keys.shape[2] - len(self._columns)


@dataclass(slots=True)
class RowCache:
    """Rows that share columns: the newest position of every row stands in the last column in use.

    So a step writes one column of all rows. The columns in front of a shorter row are nobody's.

    Attributes:
        stacks: Keys and values on each device, (layers, 2, R, heads, C, width).
        lengths: Positions of every row in use.
        columns: In use.
    """

    stacks: list[Tensor] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    columns: int = 0

    @property
    def capacity(self) -> int:
        """Columns of memory C."""
        return self.stacks[0].shape[4] if self.stacks else 0

    @property
    def nbytes(self) -> int:
        """What keys and values of the rows and columns in use take."""
        return sum(stack[:, :, : len(self.lengths), :, : self.columns].nbytes for stack in self.stacks)

    def layers(self, columns: Tensor, end: int) -> Cache:
        """Return the cache as the language model takes it, for new positions in these columns (L,).

        Args:
            columns: Where they go.
            end: How many columns are read, the new ones among them.
        """
        return Cache(
            layers=[_WrittenInPlace(layer, columns, end) for stack in self.stacks for layer in stack]
        )

    def mask(self, columns: int) -> Tensor:
        """Tell which of so many columns belong to the rows in use, (B, columns) on the host."""
        starts = torch.tensor([[columns - length] for length in self.lengths])
        return (torch.arange(columns) >= starts).long()

    def put_prefix(self, prefix: Sequence[Tensor]) -> None:
        """Begin every row with the same keys and values, (layers, 2, 1, heads, P, width) on each device."""
        for stack, part in zip(self.stacks, prefix, strict=True):
            stack[:, :, :, :, : part.shape[4]] = part

    def prefix(self, length: int) -> list[Tensor]:
        """Copy the first columns of the first row; see `put_prefix`."""
        return [stack[:, :, :1, :, :length].clone() for stack in self.stacks]

    def move_padding_first(self, padding: Tensor, prefix: int) -> None:
        """Move what pads each row (B,) from behind its first ``prefix`` columns to in front of them."""
        place = torch.arange(self.columns).expand(len(padding), -1)
        pads = padding.unsqueeze(1)
        source = torch.where(place < pads, place + prefix, place - pads)
        source = torch.where(place < pads + prefix, source, place)  # (B, T)
        for stack in self.stacks:
            used = stack[:, :, :, :, : self.columns]
            index = hand_over(source, stack.device)[:, None, :, None]
            used.copy_(used.gather(4, index.expand_as(used)))

    def fill(self, sources: Sequence[tuple[RowCache, Sequence[int]]]) -> None:
        """Take over rows of other caches, of which the first may lie in the same memory.

        Args:
            sources: Caches, and the rows that are wanted of each.
        """
        self.lengths = [cache.lengths[row] for cache, rows in sources for row in rows]
        self.columns = max(self.lengths)
        for number, stack in enumerate(self.stacks):
            old = sources[0][0].stacks[number]
            shares_memory = old.untyped_storage().data_ptr() == stack.untyped_storage().data_ptr()
            # What would be overwritten is copied before, one layer at a time for the sake of memory.
            for layers in map(_one, range(len(stack))) if shares_memory else [slice(None)]:
                parts = [_rows(cache.stacks[number][layers], cache, rows) for cache, rows in sources]
                if shares_memory:
                    parts[0] = parts[0].clone()
                self._overwrite(stack[layers], parts)

    def _overwrite(self, target: Tensor, parts: Sequence[Tensor]) -> None:
        """Put rows (layers, 2, n, heads, T', width) under each other, ending in the last column in use."""
        target.zero_()
        row = 0
        for part in parts:
            start = self.columns - part.shape[4]
            target[:, :, row : row + part.shape[2], :, start : self.columns] = part
            row += part.shape[2]


def _one(index: int) -> slice:
    return slice(index, index + 1)


def _rows(layers: Tensor, cache: RowCache, rows: Sequence[int]) -> Tensor:
    """Take rows of (layers, 2, R, heads, C, width), without columns that are nobody's."""
    first = cache.columns - max(cache.lengths[row] for row in rows)
    kept = layers[:, :, :, :, first : cache.columns]
    if list(rows) == list(range(len(rows))):
        return kept[:, :, : len(rows)]
    return kept.index_select(2, hand_over(torch.tensor(rows), kept.device))


def pad_left(prompts: Sequence[Tensor], length: int | None = None) -> tuple[Tensor, Tensor]:
    """Pad (L_i, H) prompts in front, where no next token is read.

    Args:
        prompts: Their embeddings.
        length: To how many positions; those of the longest if missing.

    Returns:
        Embeddings (B, L, H), and a mask (B, L) on the host that is 1 on what is not padding.
    """
    longest = length or max(map(len, prompts))
    embeddings = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[-1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        embeddings[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return embeddings, mask
