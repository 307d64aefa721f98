"""The sizes of keys and values, which engine, batches and measurements count alike."""

from types import SimpleNamespace

import pytest
import torch

from llava.engine.row_cache import LayerShapes, cache_bytes_per_position, head_width


@pytest.mark.parametrize(("settings", "width"), [({}, 16), ({"head_dim": None}, 16), ({"head_dim": 24}, 24)])
def test_a_head_is_as_wide_as_the_config_says_or_its_part_of_the_whole(settings, width):
    assert head_width(SimpleNamespace(hidden_size=64, num_attention_heads=4, **settings)) == width


def test_a_position_takes_as_much_as_a_column_of_the_memory(loaded):
    model = loaded[1]
    memory = LayerShapes.of(model, model.dtype).zeros(rows=2, columns=3)
    assert sum(stack.nbytes for stack in memory) == 2 * 3 * cache_bytes_per_position(model)
    half = SimpleNamespace(config=model.config, dtype=torch.float16)
    assert cache_bytes_per_position(half) == cache_bytes_per_position(model) // 2
