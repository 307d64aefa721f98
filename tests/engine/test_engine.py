"""Requests in, events out: rows come and go between steps, and no answer depends on its neighbors."""

import pytest
import torch

from llava.engine import transformers_engine
from llava.engine.base import Generation
from llava.engine.row_cache import pad_left
from llava.engine.transformers_engine import TransformersEngine, buckets
from llava.errors import UserError
from tests.recorders import CallsAgain


@pytest.fixture(params=["kernel by kernel", "replayed"])
def engine(loaded, request):
    """An engine that runs every pass anew, and one that replays short ones."""
    engine = TransformersEngine(loaded[1], loaded[0])
    if request.param == "replayed":
        engine.record(CallsAgain())
    return engine


@pytest.fixture
def plain_engine(loaded):
    """An engine that runs every pass anew, and so knows prefixes."""
    return TransformersEngine(loaded[1], loaded[0])


@pytest.fixture
def prompts(loaded):
    """Embeddings of prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    embed = loaded[1].get_input_embeddings()
    lengths = (5, 17, 9, 1, 30, 12)
    return [embed(torch.randint(3, 1600, (length,), generator=generator)).detach() for length in lengths]


def run(engine, *more):
    """Step until nothing runs; ``more`` are (step number, function) to call before a step."""
    tokens, text, reasons, number = {}, {}, {}, 0
    while True:
        for step, act in more:
            if step == number:
                act()
        events = engine.step()
        number += 1
        if not events and all(step < number for step, _ in more):
            return tokens, text, reasons
        for event in events:
            assert event.id not in reasons, "nothing happens after the last event"
            tokens.setdefault(event.id, [])
            text[event.id] = text.get(event.id, "") + event.text
            if event.token is not None:
                tokens[event.id].append(event.token)
            if event.finished:
                reasons[event.id] = event.finished


def alone(engine, prompt, **settings):
    """Tokens of one request that runs by itself."""
    request = engine.submit(prompt, Generation(**settings))
    return run(engine)[0][request]


def test_a_batch_gives_what_transformers_generates_for_each_prompt_alone(engine, prompts, loaded):
    requests = [engine.submit(prompt, Generation(max_new_tokens=10)) for prompt in prompts]
    tokens, text, reasons = run(engine)
    for request, prompt in zip(requests, prompts, strict=True):
        ids = loaded[1].generate(
            inputs_embeds=prompt.unsqueeze(0),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=10,
        )
        assert tokens[request] == ids[0].tolist()
        assert text[request] == loaded[0].decode(ids[0], skip_special_tokens=True).strip()
        assert reasons[request] == "length"


PREFIX = tuple(range(100, 120))


@pytest.fixture
def long_prompts(loaded, prompts):
    """The prompts behind a prefix of 20 ids."""
    front = loaded[1].get_input_embeddings()(torch.tensor(PREFIX)).detach()
    return [torch.cat([front, prompt]) for prompt in prompts]


def count_positions(engine, monkeypatch):
    """Return a list that gets rows and positions of every run of the language model."""
    runs, run_model = [], engine._run

    def count(embeddings, mask, cache):
        runs.append(tuple(embeddings.shape[:2]))
        return run_model(embeddings, mask, cache)

    monkeypatch.setattr(engine, "_run", count)
    return runs


def test_a_common_prefix_is_run_once_and_changes_no_answer(plain_engine, long_prompts, monkeypatch):
    engine = plain_engine
    expected = [alone(engine, prompt, max_new_tokens=8) for prompt in long_prompts]
    monkeypatch.setitem(transformers_engine.PASS_POSITIONS, "cpu", 1000)  # all prompts in one pass
    engine.padded_positions = 0
    runs = count_positions(engine, monkeypatch)
    settings = Generation(max_new_tokens=8)
    requests = [engine.submit(prompt, settings, PREFIX) for prompt in long_prompts]
    tokens, _, _ = run(engine)
    assert [tokens[request] for request in requests] == expected
    assert runs[:2] == [(1, 20), (6, 30)]
    runs.clear()
    request = engine.submit(long_prompts[1], settings, PREFIX)
    assert run(engine)[0][request] == expected[1]
    assert runs[0] == (1, 17)
    assert engine.padded_positions == 6 * 30 - (5 + 17 + 9 + 1 + 30 + 12)


def test_one_prompt_alone_runs_in_one_pass_and_leaves_its_prefix(plain_engine, long_prompts, monkeypatch):
    engine = plain_engine
    expected = [alone(engine, prompt, max_new_tokens=8) for prompt in long_prompts[:2]]
    runs = count_positions(engine, monkeypatch)
    for prompt, tokens in zip([*long_prompts[:2]] * 2, expected * 2, strict=True):
        request = engine.submit(prompt, Generation(max_new_tokens=8), PREFIX)
        assert run(engine)[0][request] == tokens
    # It is kept when it has come a second time.
    assert [positions for _, positions in runs if positions > 1] == [25, 37, 5, 17]


def test_rows_with_and_without_a_prefix_run_together(engine, prompts, long_prompts):
    mixed = [prompt for pair in zip(prompts, long_prompts, strict=True) for prompt in pair]
    expected = [alone(engine, prompt, max_new_tokens=6) for prompt in mixed]
    prefixes = [(), PREFIX] * len(prompts)
    settings = Generation(max_new_tokens=6)
    requests = [engine.submit(*one) for one in zip(mixed, [settings] * 12, prefixes, strict=True)]
    tokens, _, _ = run(engine)
    assert [tokens[request] for request in requests] == expected


def test_few_prefixes_are_kept_and_short_ones_are_not(plain_engine, long_prompts):
    engine = plain_engine
    for first in [*range(12)] * 2:
        engine.submit(long_prompts[0], Generation(max_new_tokens=1), (first, *PREFIX[1:]))
    engine.submit(long_prompts[0], Generation(max_new_tokens=1), PREFIX[:4])
    run(engine)
    assert [ids for ids, _, _ in engine._prefixes] == [(first, *PREFIX[1:]) for first in range(4, 12)]


def test_a_prefix_that_is_the_whole_prompt_is_none(engine, long_prompts):
    expected = alone(engine, long_prompts[0][:20], max_new_tokens=5)
    request = engine.submit(long_prompts[0][:20], Generation(max_new_tokens=5), PREFIX)
    assert run(engine)[0][request] == expected


@pytest.mark.parametrize(
    ("lengths", "cost", "expected"),
    [
        ([5], 32, [[0]]),
        ([100, 100, 100], 32, [[0, 1, 2]]),
        ([100, 90, 10, 5], 32, [[0, 1], [2, 3]]),
        ([5, 100, 10, 90], 32, [[1, 3], [2, 0]]),
        ([100, 90, 10, 5], 1000, [[0, 1, 2, 3]]),
        ([300, 200, 100], 0, [[0], [1], [2]]),
    ],
)
def test_prompts_of_different_lengths_are_divided_among_passes(lengths, cost, expected):
    assert buckets(lengths, cost) == expected


def test_no_division_costs_less():
    lengths = [7, 31, 64, 3, 90, 41, 12]
    ordered = sorted(lengths, reverse=True)

    def cost(groups):
        return sum(max(group) * len(group) + 20 for group in groups)

    def divisions(rest):
        if not rest:
            yield []
        for end in range(1, len(rest) + 1):
            yield from ([rest[:end], *others] for others in divisions(rest[end:]))

    found = [[lengths[index] for index in group] for group in buckets(lengths, 20)]
    assert cost(found) == min(map(cost, divisions(ordered)))


def test_long_and_short_prompts_do_not_pad_each_other(plain_engine, loaded):
    engine = plain_engine
    embed = loaded[1].get_input_embeddings()
    long, short = (embed(torch.arange(3, 3 + length)).detach() for length in (200, 10))
    expected = [alone(engine, prompt, max_new_tokens=4) for prompt in (short, long, short)]
    engine.padded_positions = 0
    requests = [engine.submit(prompt, Generation(max_new_tokens=4)) for prompt in (short, long, short)]
    tokens, _, _ = run(engine)
    assert [tokens[request] for request in requests] == expected
    assert engine.padded_positions == 0


def test_requests_that_come_and_go_between_steps_answer_as_alone(engine, prompts):
    lengths = [3, 12, 1, 7, 9, 5]
    expected = [
        alone(engine, prompt, max_new_tokens=length) for prompt, length in zip(prompts, lengths, strict=True)
    ]
    requests = {}

    def submit(number):
        requests[number] = engine.submit(prompts[number], Generation(max_new_tokens=lengths[number]))

    come = [(0, lambda: submit(0)), (0, lambda: submit(1)), (2, lambda: submit(2)), (2, lambda: submit(3))]
    tokens, _, _ = run(engine, *come, (5, lambda: submit(4)), (9, lambda: submit(5)))
    assert [tokens[requests[number]] for number in range(6)] == expected


def test_a_row_that_has_ended_frees_its_cache(plain_engine, prompts):
    engine = plain_engine
    engine.submit(prompts[4], Generation(max_new_tokens=2))  # the longest prompt, with the shortest answer
    engine.submit(prompts[0], Generation(max_new_tokens=6))
    engine.step()
    assert (engine._cache.lengths, engine._cache.columns) == ([30, 5], 30)
    two = engine.cache_bytes
    engine.step()
    assert (engine._cache.lengths, engine._cache.columns) == ([6], 6)  # of the prompt 5, of the answer 1
    assert engine.cache_bytes == two * 6 / 60
    run(engine)
    assert len(engine._rows) == engine._cache.columns == engine.cache_bytes == 0


def test_rows_and_positions_are_bounded(loaded, prompts):
    engine = TransformersEngine(loaded[1], loaded[0], max_rows=2)
    expected = [alone(engine, prompt, max_new_tokens=4) for prompt in prompts]
    requests = [engine.submit(prompt, Generation(max_new_tokens=4)) for prompt in prompts]
    most = 0
    tokens = {request: [] for request in requests}
    while events := engine.step():
        most = max(most, len(engine._rows))
        for event in events:
            tokens[event.id].append(event.token)
    assert most == 2
    assert [tokens[request] for request in requests] == expected

    engine = TransformersEngine(loaded[1], loaded[0], max_positions=40)
    for prompt in prompts:
        engine.submit(prompt, Generation(max_new_tokens=4))
    sizes = []
    while engine.step():
        sizes.append((len(engine._cache.lengths), engine._cache.columns))
    assert max(rows * positions for rows, positions in sizes) <= 40
    assert max(rows for rows, _ in sizes) > 1


@pytest.mark.parametrize("when", ["waiting", "running", "ended"])
def test_a_request_can_be_cancelled_at_any_time(when, loaded, prompts):
    engine = TransformersEngine(loaded[1], loaded[0], max_rows=2)
    expected = alone(engine, prompts[1], max_new_tokens=8)
    stays = engine.submit(prompts[1], Generation(max_new_tokens=8))
    other = engine.submit(prompts[2], Generation(max_new_tokens=2 if when == "ended" else 8))
    waits = engine.submit(prompts[0], Generation(max_new_tokens=3))
    gone = waits if when == "waiting" else other
    tokens, _, reasons = run(engine, (4 if when == "ended" else 1, lambda: engine.cancel(gone)))
    assert reasons[gone] == ("length" if when == "ended" else "cancelled")
    assert reasons[stays] == "length"
    assert tokens[stays] == expected
    assert len(tokens[gone]) == {"waiting": 0, "running": 1, "ended": 2}[when]


def test_an_answer_ends_at_its_end_token_and_the_others_go_on(engine, prompts):
    whole = [alone(engine, prompt, max_new_tokens=10) for prompt in prompts[:3]]
    end = whole[1][3]
    engine.end_ids = [2, end]
    requests = [engine.submit(prompt, Generation(max_new_tokens=10)) for prompt in prompts[:3]]
    tokens, _, reasons = run(engine)
    expected = [one[: one.index(end)] if end in one else one for one in whole]
    assert [tokens[request] for request in requests] == expected
    assert reasons[requests[1]] == "stop"


def test_stop_texts_end_the_row_in_the_engine(engine, prompts, loaded):
    whole = alone(engine, prompts[0], max_new_tokens=12)
    text = loaded[0].decode(whole).strip()
    stop = text[len(text) // 2 :][:3]
    request = engine.submit(prompts[0], Generation(max_new_tokens=12, stop=(stop, "never")))
    tokens, texts, reasons = run(engine)
    assert texts[request] == text.partition(stop)[0].rstrip()
    assert reasons[request] == "stop"
    assert len(tokens[request]) < len(whole)


def test_beams_are_those_of_transformers_and_run_alone(engine, prompts, loaded):
    expected = alone(engine, prompts[1], max_new_tokens=4)
    greedy = engine.submit(prompts[1], Generation(max_new_tokens=4))
    search = engine.submit(prompts[0], Generation(max_new_tokens=8, num_beams=3))
    tokens, text, reasons = run(engine)
    ids = loaded[1].generate(
        inputs_embeds=prompts[0].unsqueeze(0),
        attention_mask=torch.ones(1, len(prompts[0]), dtype=torch.long),
        do_sample=False,
        num_beams=3,
        max_new_tokens=8,
        eos_token_id=2,
    )[0]
    assert tokens[search] == [token for token in ids.tolist() if token != 2]
    assert text[search] == loaded[0].decode(ids, skip_special_tokens=True).strip()
    assert reasons[search] in ("stop", "length")
    assert tokens[greedy] == expected


def test_a_sampled_answer_depends_on_its_own_seed_only(engine, prompts):
    def sampled(seed):
        return Generation(max_new_tokens=8, temperature=5.0, top_p=0.95, seed=seed)

    first, second = (
        alone(engine, prompts[0], **settings(sampled(1))),
        alone(engine, prompts[0], **settings(sampled(2))),
    )
    assert first != second
    requests = [engine.submit(prompts[0], sampled(1)), engine.submit(prompts[1], sampled(7))]
    requests += [
        engine.submit(prompts[0], sampled(2)),
        engine.submit(prompts[2], Generation(max_new_tokens=3)),
    ]
    tokens, _, _ = run(engine)
    assert tokens[requests[0]] == first
    assert tokens[requests[2]] == second


def settings(generation):
    return {name: getattr(generation, name) for name in Generation.__dataclass_fields__}


def test_without_a_seed_pytorchs_generator_decides(engine, prompts):
    def sample(seed, temperature):
        torch.manual_seed(seed)
        return alone(engine, prompts[0], max_new_tokens=8, temperature=temperature, top_p=0.9)

    assert sample(1, 5.0) == sample(1, 5.0)
    assert sample(1, 5.0) != sample(2, 5.0)
    assert sample(1, 1) != sample(2, 1)  # a whole number is a temperature too
    assert sample(1, 1e-40) == sample(1, 1e-4) == alone(engine, prompts[0], max_new_tokens=8)


def test_repetition_is_made_less_likely(engine, prompts):
    plain = alone(engine, prompts[4], max_new_tokens=30)
    varied = alone(engine, prompts[4], max_new_tokens=30, repetition_penalty=5.0)
    assert len(set(varied)) > len(set(plain))


def test_an_answer_has_at_least_as_many_tokens_as_asked_for(engine, prompts):
    plain = alone(engine, prompts[0], max_new_tokens=10)
    engine.end_ids = [2, plain[0]]
    assert alone(engine, prompts[0], max_new_tokens=10) == []
    assert len(alone(engine, prompts[0], max_new_tokens=10, min_new_tokens=4)) >= 4


def test_settings_of_one_request_leave_its_neighbors_alone(engine, prompts):
    plain = alone(engine, prompts[1], max_new_tokens=6)
    engine.submit(prompts[0], Generation(max_new_tokens=6, temperature=2.0, repetition_penalty=3.0))
    request = engine.submit(prompts[1], Generation(max_new_tokens=6))
    assert run(engine)[0][request] == plain


def test_an_engine_goes_on_after_it_was_cleared(engine, prompts):
    expected = alone(engine, prompts[0], max_new_tokens=5)
    engine.submit(prompts[1], Generation(max_new_tokens=5))
    engine.step()
    engine.clear()
    assert engine.step() == []
    assert alone(engine, prompts[0], max_new_tokens=5) == expected


def test_no_attention_that_plans_every_length_anew_is_chosen_from(plain_engine, prompts, monkeypatch):
    allowed, run_model = [], plain_engine.model.forward

    def look(*args, **kwargs):
        allowed.append(torch.backends.cuda.cudnn_sdp_enabled())
        return run_model(*args, **kwargs)

    monkeypatch.setattr(plain_engine.model, "forward", look)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    alone(plain_engine, prompts[0], max_new_tokens=2)
    alone(plain_engine, prompts[0], max_new_tokens=2, num_beams=2)
    assert allowed and not any(allowed)
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_prompts_are_padded_in_front():
    embeddings, mask = pad_left([torch.ones(1, 2), torch.ones(3, 2)])
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert embeddings[0].tolist() == [[0, 0], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"num_beams": 0}, "num_beams is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("a", "")}, "stop is .*texts that are not empty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens is 9"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Generation(**options)


def test_sampled_beams_follow_their_seed_and_leave_pytorchs_generator_alone(engine, prompts):
    settings = {"max_new_tokens": 8, "num_beams": 3, "temperature": 3.0, "seed": 5}
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = alone(engine, prompts[0], **settings)
    assert torch.rand(1) == expected
    assert alone(engine, prompts[0], **settings) == first


def test_a_checkpoints_defaults_do_not_steer_beams(engine, prompts, monkeypatch):
    settings = {"max_new_tokens": 12, "num_beams": 2}
    expected = alone(engine, prompts[4], **settings)
    for name, value in {"no_repeat_ngram_size": 1, "length_penalty": 9.0}.items():
        monkeypatch.setattr(engine.model.generation_config, name, value)
    assert alone(engine, prompts[4], **settings) == expected


def test_a_special_token_as_stop_text_ends_the_answer(engine, prompts):
    whole = alone(engine, prompts[0], max_new_tokens=6)
    engine._special_tokens = {"<|im_end|>": whole[2]}
    request = engine.submit(prompts[0], Generation(max_new_tokens=6, stop=("<|im_end|>",)))
    tokens, _, reasons = run(engine)
    assert tokens[request] == whole[: whole.index(whole[2])]
    assert reasons[request] == "stop"
