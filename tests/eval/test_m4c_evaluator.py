"""VQA's measures: the normalizer's quirks, soft accuracy and ANLS, worked out by hand."""

import pytest

from llava.errors import UserError
from llava.eval.m4c_evaluator import (
    EvalAIAnswerProcessor,
    STVQAAccuracyEvaluator,
    STVQAANLSEvaluator,
    TextVQAAccuracyEvaluator,
    edit_distance,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two Dogs.", "2 dogs"),
        ("none", "0"),
        ("ten", "10"),
        ("The cat on a mat", "cat on mat"),
        ("red-and-blue", "red and blue"),  # inside of a word a space
        ("Hello - world", "hello world"),  # at its edge nothing
        ("red- blue-green", "red bluegreen"),  # once at an edge, deleted everywhere
        ("1,000", "1000"),  # commas go first, so that the rule for thousands never applies
        ("2.5 m.", "2.5 m"),  # a period before a digit stays
        ("U.S.A", "usa"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # VQA's table has it the wrong way round
        ("im", "im"),  # its keys in capitals never match
        ("the dog's", "dog 's"),
        ("yes\n", "yes"),
        ("a\tb", "b"),
        ("what? , no", "what no"),
        ("N/A", "n"),  # the slash becomes a space, and what is left of it an article
        ("", ""),
        (". " * 33, "."),  # only 32 periods go
    ],
)
def test_answers_are_normalized_as_evalai_does(text, expected):
    assert EvalAIAnswerProcessor()(text) == expected


@pytest.mark.parametrize(
    ("same", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # left out: 0; the nine others: 1/3 each
        (2, 0.6),  # 2 x 1/3 + 8 x 2/3 = 6
        (3, 0.9),  # 3 x 2/3 + 7 x 1 = 9
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_soft_accuracy_is_the_mean_over_leaving_out_each_person(same, expected):
    references = ["red"] * same + [f"other {number}" for number in range(10 - same)]
    assert TextVQAAccuracyEvaluator().score("Red.", references) == pytest.approx(expected)


def test_references_that_are_normalized_alike_count_together():
    references = ["two dogs", "2 dogs", "The 2 dogs"] + ["cats"] * 7
    assert TextVQAAccuracyEvaluator().score("2 dogs", references) == pytest.approx(0.9)


def test_accuracy_needs_ten_references():
    with pytest.raises(UserError, match="9 reference answers; .* needs 10"):
        TextVQAAccuracyEvaluator().eval_pred_list([{"pred_answer": "a", "gt_answers": ["a"] * 9}])


def test_lists_are_averaged():
    items = [
        {"pred_answer": "red", "gt_answers": ["red"] * 10},
        {"pred_answer": "blue", "gt_answers": ["red"] * 10},
    ]
    assert TextVQAAccuracyEvaluator().eval_pred_list(items) == 0.5
    assert TextVQAAccuracyEvaluator().eval_pred_list([]) == 0
    assert (
        STVQAAccuracyEvaluator().eval_pred_list([{"pred_answer": "The Red", "gt_answers": ["red", "b"]}]) == 1
    )


def test_anls_counts_near_misses_and_nothing_below_half():
    evaluator = STVQAANLSEvaluator()
    assert evaluator.get_anls("Coffee", "coffe ") == pytest.approx(1 - 1 / 6)
    assert evaluator.get_anls("tea", "coffee") == 0
    assert evaluator.get_anls("", "") == 1
    items = [{"pred_answer": "stop", "gt_answers": ["shop", "stops"]}]
    assert evaluator.eval_pred_list(items) == pytest.approx(1 - 1 / 5)


@pytest.mark.parametrize(
    ("first", "second", "expected"), [("kitten", "sitting", 3), ("", "abc", 3), ("a", "a", 0)]
)
def test_edit_distance(first, second, expected):
    assert edit_distance(first, second) == edit_distance(second, first) == expected
