"""Text comes out as soon as it is certain, in whole characters, and joins to what the answer decodes to."""

import random

import pytest

from llava.engine.answer_text import AnswerText


def push_all(tokenizer, ids, *stops):
    text = AnswerText(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            break
    pieces.append(text.finish())
    return pieces, text


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "answer", ["A red circle.", "é 你好 👍🏽, ok", "two  spaces\nand a line", "ends in blank "]
)
def test_pieces_join_to_the_answer_and_characters_come_whole(answer, loaded):
    tokenizer = loaded[0]
    pieces, text = push_all(tokenizer, ids_of(tokenizer, answer), "</s>")
    assert "".join(pieces) == text.text == answer.strip()
    assert all("\ufffd" not in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) > 2


def test_any_tokens_join_to_what_they_decode_to_together(loaded):
    """Also incomplete characters, lone spaces, special tokens: whatever a model may write."""
    tokenizer, generator = loaded[0], random.Random(0)
    awkward = [*range(260), *ids_of(tokenizer, "a  b ▁ é👍"), tokenizer.convert_tokens_to_ids("▁")]
    for number in range(300):
        choice = awkward if number % 2 else range(3, 1600)
        ids = [generator.choice(choice) for _ in range(generator.randrange(1, 30))]
        pieces, text = push_all(tokenizer, ids)
        assert "".join(pieces) == text.text == tokenizer.decode(ids, skip_special_tokens=True).strip(), ids


@pytest.mark.parametrize("stop", ["###", "\n###", "Human", " more"])
def test_a_stop_text_ends_the_answer_and_is_never_shown(stop, loaded):
    tokenizer = loaded[0]
    answer = "Yes.\n###Human: more"
    pieces, text = push_all(tokenizer, ids_of(tokenizer, answer), stop)
    assert "".join(pieces) == text.text == answer.partition(stop)[0].rstrip()
    assert text.stopped


def test_the_first_of_several_stop_texts_counts(loaded):
    tokenizer = loaded[0]
    pieces, text = push_all(tokenizer, ids_of(tokenizer, "one two three"), "three", "two", "four")
    assert "".join(pieces) == text.text == "one"


def test_a_beginning_of_the_stop_text_that_goes_on_otherwise_is_shown(loaded):
    tokenizer = loaded[0]
    pieces, _ = push_all(tokenizer, ids_of(tokenizer, "a ## b"), "###")
    assert "".join(pieces) == "a ## b"


def test_a_token_costs_as_much_in_a_long_answer_as_in_a_short_one(loaded, monkeypatch):
    tokenizer = loaded[0]
    lengths = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **options: lengths.append(len(ids)) or decode(ids, **options)
    )
    ids = ids_of(tokenizer, "a red circle and " * 100)
    push_all(tokenizer, ids, "###")
    assert len(ids) > 300
    assert max(lengths) <= 8
    assert len(lengths) <= 2 * len(ids) + 2


def test_a_stop_text_that_begins_with_whitespace_is_found_at_the_start(loaded):
    tokenizer = loaded[0]
    pieces, text = push_all(tokenizer, [*ids_of(tokenizer, "a"), *ids_of(tokenizer, "\n## b")][1:], "\n##")
    assert text.stopped
    assert "".join(pieces) == ""
