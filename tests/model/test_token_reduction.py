"""The reducers on plain tensors: the published rule, its limits, and that no image depends on its batch."""

import pytest
import torch

from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.registry import METHODS, REDUCERS, parse_reduction
from llava.model.multimodal_encoder.token_reduction import (
    NoReduction,
    Reducer,
    ReducerInputs,
    VisualTokens,
    keep_outliers,
    keep_top,
    merge_dropped,
    patch_relevance,
    patch_scores,
)

SETTINGS = [
    "none",
    "TRIM:-1",
    "TRIM:0.25",
    "TRIM:5",
    "TRIM:1",
    "Random:-1",
    "Random:0.25",
    "Random:7",
    "Pool:9",
]
SELECTING = [setting for setting in SETTINGS if setting.startswith(("TRIM", "Random"))]
IMAGES, PATCHES, WIDTH, JOINT = 16, 64, 12, 8


def test_every_reducer_of_the_table_is_among_the_settings_of_these_tests():
    own = REDUCERS.keys() - METHODS.keys()  # which have tests of their own in tests/model/reducers
    assert {setting.partition(":")[0] for setting in SETTINGS} == {"none", *own}


@pytest.fixture
def world() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "patches": torch.randn(IMAGES, PATCHES, WIDTH, generator=generator),
        "questions": torch.randn(IMAGES, JOINT, generator=generator) * 3,
        "projection": torch.randn(JOINT, WIDTH, generator=generator),
        "pixels": torch.randn(IMAGES, 3, 4, 4, generator=generator),
    }


def reduce(reducer: Reducer, world: dict[str, torch.Tensor], rows: list[int]) -> VisualTokens:
    patches, questions = world["patches"][rows], world["questions"][rows]
    scores = patch_scores(patches.float(), questions, world["projection"])
    return reducer(ReducerInputs(patches, world["pixels"][rows], lambda: patch_relevance(scores)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_image_is_reduced_bitwise_alike_alone_in_a_batch_and_in_any_order(setting, world):
    """TRIM's adaptive count is a property of one image; a shared quantile once made it one of the batch."""
    reducer = parse_reduction(setting)
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1)).tolist()
    together = reduce(reducer, world, list(range(IMAGES))).split()
    shuffled = reduce(reducer, world, order).split()
    for row in range(IMAGES):
        (alone,) = reduce(reducer, world, [row]).split()
        assert torch.equal(alone, together[row])
        assert torch.equal(alone, shuffled[order.index(row)])


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_reducer_gives_between_one_and_n_plus_one_tokens_of_the_towers_type(setting, world):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        cast = {**world, "patches": world["patches"].to(dtype)}
        tokens = reduce(parse_reduction(setting), cast, list(range(IMAGES)))
        assert tokens.packed.dtype is dtype
        assert tokens.packed.shape == (sum(tokens.counts), WIDTH)
        assert all(1 <= count <= PATCHES + 1 for count in tokens.counts)
        assert tokens.kept.shape == (IMAGES, PATCHES)


@pytest.mark.parametrize("setting", SELECTING)
def test_kept_patches_are_in_raster_order_and_the_last_token_is_the_mean_of_the_others(setting, world):
    tokens = reduce(parse_reduction(setting), world, list(range(IMAGES)))
    for patches, kept, own in zip(world["patches"], tokens.kept, tokens.split(), strict=True):
        count = int(kept.sum())
        assert torch.equal(own[:count], patches[kept])
        if count == PATCHES:
            assert len(own) == PATCHES
        else:
            assert len(own) == count + 1
            torch.testing.assert_close(own[-1], patches[~kept].mean(dim=0))


def test_adaptive_counts_differ_between_images_and_stay_below_a_quarter(world):
    counts = reduce(parse_reduction("TRIM:-1"), world, list(range(IMAGES))).counts
    assert len(set(counts)) > 3
    assert max(counts) <= PATCHES // 4 + 1


def test_relevance_falls_with_the_dot_product():
    relevance = patch_relevance(torch.tensor([[3.0, -2.0, 0.0]]))
    assert relevance.argsort(descending=True).tolist() == [[1, 2, 0]]
    torch.testing.assert_close(relevance.sum(), torch.tensor(1.0))


def test_scores_are_plain_dot_products_of_projected_patches(world):
    scores = patch_scores(world["patches"], world["questions"], world["projection"])
    projected = world["patches"] @ world["projection"].T
    expected = torch.einsum("bne,be->bn", projected, world["questions"])
    # Worst difference seen: 3e-5, of scores up to 60.
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)


def test_outliers_by_hand():
    """Quartiles of 0..8 are 2 and 6, so the bound is 6 + 1.5 * 4 = 12."""
    relevance = torch.tensor([[0.0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 12.5]])
    kept = keep_outliers(relevance)
    assert kept[1].nonzero().flatten().tolist() == [8]
    # Where nothing stands out the most relevant patch stays (the published code crashes there).
    assert kept[0].nonzero().flatten().tolist() == [8]


def test_a_blank_picture_keeps_its_first_patch():
    assert keep_outliers(torch.full((2, 10), 0.1)).nonzero().tolist() == [[0, 0], [1, 0]]


def test_of_equally_relevant_patches_the_earlier_stays():
    assert keep_top(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), 2).tolist() == [[False, True, True, False]]


def test_keeping_everything_adds_no_token():
    patches = torch.randn(1, 5, 3)
    assert torch.equal(merge_dropped(patches, torch.ones(1, 5, dtype=torch.bool)).packed, patches[0])


@pytest.mark.parametrize(
    ("setting", "patches", "count"),
    [
        ("TRIM:0.25", 576, 144),
        ("TRIM:0.05", 576, 28),
        ("TRIM:0.001", 576, 1),
        ("TRIM:1", 576, 576),
        ("TRIM:64", 576, 64),
        ("TRIM:9999", 576, 576),
        ("Random:2", 576, 2),
    ],
)
def test_fixed_budgets(setting, patches, count):
    reducer = parse_reduction(setting)
    assert reducer.budget.of(patches) == count
    assert str(reducer) == setting


@pytest.mark.parametrize("text", [None, "none"])
def test_no_reduction(text):
    assert parse_reduction(text) == NoReduction()


def test_a_ratio_is_written_with_all_its_digits():
    reducer = parse_reduction(f"TRIM:{145 / 576}")
    assert parse_reduction(str(reducer)) == reducer
    assert str(parse_reduction("TRIM:0.99999999")) != "TRIM:1"


@pytest.mark.parametrize("text", SETTINGS)
def test_a_setting_is_written_as_it_is_read(text):
    assert str(parse_reduction(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *["TRIM", "TRIM:", "TRIM:0", "TRIM:-2", "TRIM:nan", "TRIM:inf", "TRIM:1.5", "TRIM:abc", "xTRIM:0.5"],
        *["trim:-1", "TRIM:-1:2", "Prune:3", "Random", "Random:0", "Pool", "Pool:0", "Pool:-1", "Pool:2.5"],
        *["", "none:1", "None", "-1", "0.5"],
    ],
)
def test_anything_else_is_refused_with_the_accepted_forms(text):
    with pytest.raises(UserError, match="accepted: 'none', 'TRIM:-1'") as caught:
        parse_reduction(text)
    assert repr(text) in str(caught.value)


def test_random_repeats_for_the_same_pixels_and_differs_for_others(world):
    reducer = parse_reduction("Random:7")
    first, second = (reduce(reducer, world, list(range(IMAGES))).kept for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(row) for row in first.tolist()}) > IMAGES // 2


def test_random_keeps_as_many_as_trim_would(world):
    rows = list(range(IMAGES))
    assert (
        reduce(parse_reduction("Random:-1"), world, rows).counts
        == reduce(parse_reduction("TRIM:-1"), world, rows).counts
    )


def test_a_fixed_random_budget_and_pooling_never_ask_for_the_question(world):
    def no_question() -> torch.Tensor:
        raise AssertionError("asked")

    for setting in ("none", "Random:3", "Pool:4"):
        reducer = parse_reduction(setting)
        assert not reducer.needs_question
        reducer(ReducerInputs(world["patches"], world["pixels"], no_question))


@pytest.mark.parametrize(("cells", "tokens"), [(1, 1), (8, 4), (9, 9), (63, 49), (64, 64), (1000, 64)])
def test_pooling_takes_the_nearest_square_below(cells, tokens, world):
    assert reduce(parse_reduction(f"Pool:{cells}"), world, [0]).counts == (tokens,)


def test_pooling_averages_neighbors():
    patches = torch.arange(16.0).reshape(1, 16, 1)
    inputs = ReducerInputs(patches, torch.zeros(1, 3, 2, 2), lambda: patches)
    assert parse_reduction("Pool:4")(inputs).packed.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(parse_reduction("Pool:16")(inputs).packed, patches[0])


def test_pooling_leaves_a_cls_token_in_front():
    patches = torch.cat([torch.full((1, 1, 1), 99.0), torch.arange(16.0).reshape(1, 16, 1)], dim=1)
    inputs = ReducerInputs(patches, torch.zeros(1, 3, 2, 2), lambda: patches)
    assert parse_reduction("Pool:1")(inputs).packed.flatten().tolist() == [99.0, 7.5]
