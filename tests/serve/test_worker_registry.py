"""What a controller knows of its workers, by a clock that the test turns."""

import random
from collections import Counter

import pytest

from llava.serve.protocol import Registration, WorkerStatus
from llava.serve.worker_registry import WorkerRegistry


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def registry(clock):
    return WorkerRegistry(clock=clock)


def add(registry, name, *models, speed=1.0, queue=0, check=True):
    status = WorkerStatus(models or ("m",), speed, queue)
    registry.register(Registration(name, check, status), status)


def test_the_shortest_queue_for_its_speed_is_chosen_and_grows(registry):
    add(registry, "slow", queue=1)
    add(registry, "fast", speed=4, queue=2)
    assert [registry.choose("m") for _ in range(4)] == ["fast", "fast", "slow", "fast"]


def test_a_beat_says_how_long_the_queue_is(registry):
    add(registry, "a")
    add(registry, "b", queue=5)
    assert registry.beat("a", 9)
    assert registry.choose("m") == "b"


def test_the_lottery_draws_in_proportion_to_speed(clock):
    registry = WorkerRegistry("lottery", clock=clock, chance=random.Random(0))
    add(registry, "slow", speed=1)
    add(registry, "fast", speed=3, queue=1000)
    drawn = Counter(registry.choose("m") for _ in range(2000))
    assert drawn["fast"] / 2000 == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("dispatch", ["lottery", "shortest_queue"])
def test_only_workers_that_serve_the_model_and_are_not_excluded_are_chosen(dispatch, clock):
    registry = WorkerRegistry(dispatch, clock=clock)
    assert registry.choose("m") is None
    add(registry, "a", "m")
    add(registry, "b", "n")
    assert {registry.choose("m") for _ in range(20)} == {"a"}
    assert registry.choose("m", but_not=["a"]) is None
    assert registry.choose("other") is None


def test_a_worker_is_dropped_after_thirty_seconds_without_a_beat_and_not_before(registry, clock):
    add(registry, "beating")
    add(registry, "silent")
    add(registry, "by hand", check=False)
    clock.now += 20
    registry.beat("beating", 0)
    clock.now += 10
    assert registry.drop_silent() == []
    clock.now += 0.1
    assert registry.drop_silent() == ["silent"]
    assert not registry.beat("silent", 0)
    clock.now += 1e6
    assert registry.drop_silent() == ["beating"]
    assert registry.choose("m") == "by hand"


def test_a_dropped_worker_registers_again(registry, clock):
    add(registry, "a")
    clock.now += 31
    registry.drop_silent()
    assert registry.choose("m") is None
    add(registry, "a")
    assert registry.choose("m") == "a"


def test_a_lost_worker_is_forgotten_if_it_comes_back_by_itself(registry):
    add(registry, "beats")
    add(registry, "by hand", check=False)
    for name in ("beats", "by hand", "unknown"):
        registry.lose(name)
    assert registry.choose("m") == "by hand"
    registry.remove("by hand")
    assert registry.choose("m") is None


def test_registering_again_replaces_what_was_known(registry):
    add(registry, "a", "m", queue=7)
    add(registry, "a", "n", speed=2)
    assert registry.models() == ["n"]
    assert registry.status() == WorkerStatus(("n",), 2, 0)
    (registration,) = registry.registrations()
    assert (registration.worker_name, registration.check_heart_beat) == ("a", True)


def test_all_workers_together_are_one_status(registry):
    assert registry.status() == WorkerStatus((), 0, 0)
    add(registry, "a", "m", "n", speed=1, queue=2)
    add(registry, "b", "n", "l", speed=2, queue=3)
    assert registry.status() == WorkerStatus(("l", "m", "n"), 3, 5)
    assert registry.models() == ["l", "m", "n"]
