"""Several threads wait for one engine: each gets its own events, whoever waits runs the steps."""

import threading
from collections import Counter

import pytest
import torch

from llava.engine.base import Event, Generation
from llava.engine.router import Router
from llava.engine.transformers_engine import TransformersEngine


class Scripted:
    """Gives every request as many tokens as its prompt is long, or fails."""

    def __init__(self):
        self.left, self.count, self.failing, self.stepping = {}, 0, False, 0
        self.cancelled, self.cleared = [], 0

    def submit(self, embeddings, generation, prefix=()):
        self.count += 1
        self.left[self.count] = len(embeddings)
        return self.count

    def cancel(self, request):
        self.cancelled.append(request)
        self.left.pop(request, None)

    def clear(self):
        self.cleared += 1
        self.left.clear()

    def step(self):
        self.stepping += 1
        assert self.stepping == 1, "one thread at a time"
        if self.failing:
            self.stepping -= 1
            raise MemoryError("no memory")
        events = []
        for request in list(self.left):
            self.left[request] -= 1
            events.append(Event(request, token=request, finished=None if self.left[request] else "length"))
            if not self.left[request]:
                del self.left[request]
        self.stepping -= 1
        return events


def take_all(router, request):
    events = []
    while not events or not events[-1].finished:
        events.append(router.wait([request]))
    return events


def test_every_thread_gets_its_own_events():
    router, counts = Router(Scripted()), Counter()

    def ask(length):
        request = router.submit(torch.ones(length, 1), Generation())
        events = take_all(router, request)
        assert {event.token for event in events} == {request}
        counts[length] += len(events)

    threads = [threading.Thread(target=ask, args=(length,)) for length in range(1, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert counts == {length: length for length in range(1, 41)}


def test_a_failed_step_is_raised_for_every_request_and_later_ones_go_on():
    engine = Scripted()
    router = Router(engine)
    requests = [router.submit(torch.ones(3, 1), Generation()) for _ in range(2)]
    engine.failing = True
    with pytest.raises(MemoryError, match="no memory"):
        router.wait([requests[0]])
    for request in requests:
        with pytest.raises(RuntimeError, match="the engine failed: MemoryError: no memory"):
            router.wait([request])
    assert engine.cleared == 1
    engine.failing = False
    assert len(take_all(router, router.submit(torch.ones(3, 1), Generation()))) == 3


def test_a_cancelled_request_is_told_to_the_engine_once():
    engine = Scripted()
    router = Router(engine)
    request = router.submit(torch.ones(3, 1), Generation())
    router.cancel(request)
    router.cancel(request)
    assert engine.cancelled == [request]


def test_the_engine_frees_what_the_last_request_held_when_that_is_cancelled():
    engine = Scripted()
    router = Router(engine)
    first, second = (router.submit(torch.ones(1, 1), Generation()) for _ in range(2))
    steps, step = [], engine.step
    engine.step = lambda: steps.append(list(engine.left)) or step()
    router.cancel(first)
    assert not steps  # the next step for the other one will do it
    assert router.wait([second]).finished
    assert len(steps) == 1
    router.cancel(router.submit(torch.ones(1, 1), Generation()))
    assert len(steps) == 2
    engine.failing = True
    router.cancel(router.submit(torch.ones(1, 1), Generation()))  # nobody asked for that step
    assert engine.cleared == 1


def test_a_request_that_is_cancelled_during_the_last_step_is_freed_after_it():
    engine = Scripted()
    router = Router(engine)
    last, other = (router.submit(torch.ones(length, 1), Generation()) for length in (1, 9))
    steps, step = [], engine.step

    def cancel_meanwhile():
        steps.append(list(engine.left))
        if len(steps) == 1:
            router.cancel(other)
        return step()

    engine.step = cancel_meanwhile
    assert router.wait([last]).finished
    assert steps == [[last, other], []]


def test_threads_that_share_a_real_engine_get_what_each_gets_alone(loaded):
    tokenizer, model, _, _ = loaded
    generator = torch.Generator().manual_seed(0)
    prompts = [
        model.get_input_embeddings()(torch.randint(3, 1600, (length,), generator=generator)).detach()
        for length in range(3, 15)
    ]
    expected = []
    for prompt in prompts:
        router = Router(TransformersEngine(model, tokenizer))
        events = take_all(router, router.submit(prompt, Generation(max_new_tokens=6)))
        expected.append([event.token for event in events])
    router, found = Router(TransformersEngine(model, tokenizer, max_rows=5)), {}

    def ask(number):
        events = take_all(router, router.submit(prompts[number], Generation(max_new_tokens=6)))
        found[number] = [event.token for event in events]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert [found[number] for number in range(len(prompts))] == expected


def test_nobody_hangs_when_the_engine_cannot_even_be_cleared():
    class Broken(Scripted):
        def clear(self):
            raise RuntimeError("the device is gone")

    engine = Broken()
    router, errors = Router(engine), []
    engine.failing = True

    def ask():
        try:
            take_all(router, router.submit(torch.ones(3, 1), Generation()))
        except (MemoryError, RuntimeError) as error:
            errors.append(type(error))

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(errors) == 4


def test_an_interrupt_ends_the_thread_that_it_reached_and_not_the_others():
    class Interrupted(Scripted):
        def step(self):
            raise KeyboardInterrupt

    router = Router(Interrupted())
    first, second = (router.submit(torch.ones(3, 1), Generation()) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        router.wait([first])
    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        router.wait([second])
