"""Which option an answer means."""

import pytest

from llava.eval.benchmarks.options import chosen_letter, option_lines

OPTIONS = ["red", "a blue ring", "Cat", "2"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        (" B\n", "B"),
        ("B.", "B"),
        ("B. a blue ring", "B"),
        ("(B)", "B"),
        ("B) because", "B"),
        ("B: yes", "B"),
        ("A blue ring", "B"),  # an option's words, not the letter A
        ("a blue  ring.", "B"),
        ("cat", "C"),
        ("2", "D"),
        ("E", None),  # there is no such option
        ("b", None),
        ("B or C", None),
        ("The answer is B", None),
        ("", None),
        ("I do not know", None),
    ],
)
def test_an_answer_means_a_letter_or_the_words_of_an_option(text, expected):
    assert chosen_letter(text, OPTIONS) == expected


def test_words_that_two_options_have_mean_none():
    assert chosen_letter("red", ["red", "Red"]) is None


def test_options_are_lettered_lines():
    assert option_lines(OPTIONS) == "A. red\nB. a blue ring\nC. Cat\nD. 2"
