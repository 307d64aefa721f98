"""The order of samples: one modality and similar lengths per batch, the work shared evenly."""

import pytest

from llava.train.llava_trainer import LengthGroupedSampler, split_to_even_chunks


def test_work_is_dealt_out_evenly():
    lengths = [9, 8, 7, 6, 5, 4]
    assert split_to_even_chunks(range(6), lengths, 2) == [[0, 3, 4], [1, 2, 5]]  # 9 + 6 + 5, 8 + 7 + 4


def test_a_share_is_full_at_the_common_count():
    assert split_to_even_chunks(range(4), [100, 1, 1, 1], 2) == [[0, 3], [1, 2]]


def test_what_does_not_divide_is_dealt_in_turn():
    assert split_to_even_chunks([4, 2, 0], [1] * 5, 2) == [[4, 0], [2]]


@pytest.mark.parametrize("world_size", [1, 2])
def test_batches_hold_one_modality_except_the_last(world_size: int):
    lengths = [10 + i for i in range(21)] + [-5 - i for i in range(14)]
    sampler = LengthGroupedSampler(2, world_size, lengths, seed=3, group_by_modality=True)
    order = list(sampler)
    assert len(sampler) == len(order) == 35
    assert sorted(order) == list(range(35))
    size = 2 * world_size
    # The incomplete megabatch of each modality, sorted, ends the epoch.
    rest = (21 % size or size) + (14 % size or size)
    for start in range(0, len(order) - rest, size):
        assert len({lengths[i] > 0 for i in order[start : start + size]}) == 1
    assert order[-rest:] == sorted(order[-rest:])
    kinds = [lengths[i] > 0 for i in order[: len(order) - rest : size]]
    assert kinds != sorted(kinds)
    assert kinds != sorted(kinds, reverse=True)  # modalities alternate over the epoch


def test_one_modality_is_grouped_by_length_alone():
    order = list(LengthGroupedSampler(4, 1, [5, 1, 4, 2, 3, 9, 8, 7], group_by_modality=True))
    assert sorted(order) == list(range(8))
    lengths = [[5, 1, 4, 2, 3, 9, 8, 7][i] for i in order]
    assert lengths[:4] == sorted(lengths[:4], reverse=True)


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    sampler = LengthGroupedSampler(2, 1, list(range(1, 40)), seed=7)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_length_zero_has_no_sign():
    with pytest.raises(ValueError, match="sample 1 has length 0"):
        LengthGroupedSampler(1, 1, [3, 0], group_by_modality=True)
