"""Lines through measured points, and what follows from them."""

from dataclasses import replace

import pytest

from llava.bench import growth
from llava.bench.growth import Line
from llava.bench.measure import Setting
from tests.bench.made_reports import growing, row


def test_a_line_is_fitted_by_least_squares():
    line = Line.through([(0, 1), (1, 3), (2, 5)])
    assert (line.start, line.slope, line.fit) == pytest.approx((1, 2, 1))
    assert line.at(10) == pytest.approx(21)
    # Residuals -0.5, 1 and -0.5, deviations from the mean -1, 1 and 0: R² is 1 - 1.5 / 2.
    line = Line.through([(0, 1), (1, 3), (2, 2)])
    assert (line.start, line.slope, line.fit) == pytest.approx((1.5, 0.5, 0.25))
    assert Line.through([(1, 7), (2, 7)]).fit == 1


def test_visual_tokens_grow_from_one_to_nearly_all_and_then_batches():
    settings = growth.growth_settings(24, [1, 4])
    assert [one.reduction for one in settings[:6]] == [f"Pool:{n}" for n in (1, 16, 64, 144, 256, 400)]
    assert settings[6:] == [
        Setting(name, batch) for name in ("none", "TRIM:0.21") for batch in (1, 4)
    ]  # `none` at batch 1 has all 576


def test_where_reducing_pays_follows_from_the_line():
    found = growth.payback(growing())
    assert found is not None
    assert found.token_ms == pytest.approx(2)
    assert found.extra_ms == 40
    # 40 ms are as much as 20 of 64 tokens take.
    assert found.saves_below == pytest.approx(44)
    # Halving n tokens saves n of 140 + 2 n ms, a twentieth at n = 140 / 18.
    assert found.halving_saves_above == pytest.approx(140 / 18)


def test_where_time_does_not_grow_reducing_does_not_pay():
    made = growing()
    flat = [one if one.batch > 1 else row(one.reduction, 1, one.visual_tokens, 100.0) for one in made.rows]
    assert growth.payback(replace(made, rows=tuple(flat))) is None


def test_rows_are_those_that_differ_in_one_thing():
    made = growing()
    assert [one.visual_tokens for one in growth.by_tokens(made)] == [1, 4, 16, 64]
    assert [one.batch for one in growth.by_batch(made, "TRIM:0.21")] == [1, 2, 4]


def test_what_is_not_counted_has_no_points():
    rows = [replace(one, peak_mib=None) for one in growth.by_tokens(growing())]
    assert growth.points(rows, lambda one: one.visual_tokens, "peak memory, MiB") == []
    assert growth.points(rows[:1], lambda one: one.visual_tokens, "KV cache, MiB") == [(1, 0.5)]
