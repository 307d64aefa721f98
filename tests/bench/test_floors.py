"""Floors are what work takes at the rates that were measured."""

import torch

from llava.bench.floors import Rates, Work, median_ms

CPU = torch.device("cpu")


def test_a_floor_is_the_larger_of_two_times():
    rates = Rates(moved=100.0, flops=1000.0)
    assert rates.floor(Work(50, 100)) == (500, "memory")
    assert rates.floor(Work(50, 1000)) == (1000, "compute")
    assert Work(1, 2) + Work(3, 4) == Work(4, 6)
    assert rates.beside(750, Work(50, 100)) == {"ms": 750, "floor_ms": 500, "bound": "memory", "ratio": 1.5}
    assert rates.beside(750, None) == {"ms": 750}


def test_a_median_is_taken_of_rounds_after_one_to_warm_up():
    called = []
    assert median_ms(CPU, lambda: called.append(1), calls=3, repeats=2) >= 0
    assert len(called) == 9
