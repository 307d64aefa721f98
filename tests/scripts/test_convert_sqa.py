"""ScienceQA's problems without lecture and solution; the others are in test_convert_options."""

import pytest

from scripts.convert_sqa_to_llava import INPUTS, OUTPUTS, answer_text, question_text

PROBLEM = {"question": "Which?", "choices": ["x", "y"], "answer": 1, "lecture": "", "solution": ""}


@pytest.mark.parametrize("said", OUTPUTS)
def test_an_answer_announces_no_reason_that_is_empty(said):
    expected = "###\nANSWER: B." if said == "LEPA" else "The answer is B."
    assert answer_text(PROBLEM, said) == expected


@pytest.mark.parametrize("shown", [shown for shown in INPUTS if not shown.endswith("M")])
def test_a_question_announces_no_reason_that_is_empty(shown):
    assert question_text(PROBLEM, shown) == "Which?\nContext: N/A\nOptions: (A) x (B) y"
