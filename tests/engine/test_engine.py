"""Engines and the text of their tokens."""

import pytest
import torch

from llava.engine.answer_text import AnswerText
from llava.engine.base import Generation
from llava.engine.transformers_engine import TransformersEngine, pad_left
from llava.errors import UserError


@pytest.fixture
def engine(loaded):
    return TransformersEngine(loaded[1], end_ids=[2])


@pytest.fixture
def prompts(loaded):
    """Embeddings of three prompts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    embed = loaded[1].get_input_embeddings()
    return [embed(torch.randint(3, 1600, (length,), generator=generator)).detach() for length in (5, 17, 9)]


def columns(steps):
    """Tokens of each prompt."""
    return [[token for token in column if token is not None] for column in zip(*steps, strict=True)]


def test_a_batch_streams_what_transformers_generates_for_each_prompt_alone(engine, prompts, loaded):
    together = columns(engine.stream(prompts, Generation(max_new_tokens=10)))
    for prompt, tokens in zip(prompts, together, strict=True):
        ids = loaded[1].generate(
            inputs_embeds=prompt.unsqueeze(0),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=10,
        )
        assert tokens == ids[0].tolist()


def test_an_answer_ends_at_its_end_token_and_the_others_go_on(engine, prompts):
    whole = columns(engine.stream(prompts, Generation(max_new_tokens=10)))
    end = whole[1][3]
    ended = columns(
        TransformersEngine(engine.model, end_ids=[2, end]).stream(prompts, Generation(max_new_tokens=10))
    )
    assert ended == [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in whole]


def test_nothing_is_computed_after_the_stream_is_closed(engine, prompts, monkeypatch):
    steps = []
    step = engine._step
    monkeypatch.setattr(engine, "_step", lambda *arguments: steps.append(1) or step(*arguments))
    stream = engine.stream(prompts, Generation(max_new_tokens=50))
    next(stream)
    stream.close()
    assert len(steps) == 1


def test_beams_are_those_of_transformers(engine, prompts, loaded):
    found = columns(engine.stream(prompts[:1], Generation(max_new_tokens=8, num_beams=3)))
    ids = loaded[1].generate(
        inputs_embeds=prompts[0].unsqueeze(0),
        attention_mask=torch.ones(1, len(prompts[0]), dtype=torch.long),
        do_sample=False,
        num_beams=3,
        max_new_tokens=8,
        eos_token_id=2,
    )
    assert found[0] == [token for token in ids[0].tolist() if token != 2]


def test_sampling_follows_the_seed_and_the_temperature(engine, prompts):
    def sample(seed, temperature):
        torch.manual_seed(seed)
        return columns(
            engine.stream(prompts, Generation(max_new_tokens=8, temperature=temperature, top_p=0.9))
        )

    assert sample(1, 5.0) == sample(1, 5.0)
    assert sample(1, 5.0) != sample(2, 5.0)
    assert sample(1, 1) != sample(2, 1)  # a whole number is a temperature too
    assert (
        sample(1, 1e-40) == sample(1, 1e-4) == columns(engine.stream(prompts, Generation(max_new_tokens=8)))
    )


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
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Generation(**options)


def push_all(tokenizer, ids, stop):
    text = AnswerText(tokenizer, stop)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text


@pytest.mark.parametrize(
    "answer", ["A red circle.", "é 你好 👍🏽, ok", "two  spaces\nand a line", "ends in blank "]
)
def test_pieces_join_to_the_answer_and_letters_come_whole(answer, loaded):
    tokenizer = loaded[0]
    pieces, text = push_all(tokenizer, tokenizer(answer, add_special_tokens=False)["input_ids"], "</s>")
    assert "".join(pieces) == text.text == answer.strip()
    assert all("\ufffd" not in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 2


def test_a_written_out_stop_text_ends_the_answer_and_is_never_shown(loaded):
    tokenizer = loaded[0]
    ids = tokenizer("Yes.\n###Human: more", add_special_tokens=False)["input_ids"]
    pieces, text = push_all(tokenizer, ids, "###")
    assert "".join(pieces) == text.text == "Yes."
    assert text.stopped


def test_a_beginning_of_the_stop_text_that_goes_on_otherwise_is_shown(loaded):
    tokenizer = loaded[0]
    ids = tokenizer("a ## b", add_special_tokens=False)["input_ids"]
    pieces, _ = push_all(tokenizer, ids, "###")
    assert "".join(pieces) == "a ## b"
