"""MMTok against the authors' answers, and the words that it looks for."""

import json
from dataclasses import replace

import pytest
import torch

from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.mmtok import MMTok, content_words, what_to_cover
from llava.model.multimodal_encoder.token_reduction import Count
from tests.model.reducers.golden import FOLDER, assert_agrees, unit_cases


def questions_and_words():
    """What the authors' code found in the questions of its goldens."""
    groups = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["groups"]
    cases = [case for group in groups for case in group["cases"] if group["kind"] == "e2e"]
    return {one["question"]: one["observed"]["words"] for one in cases if one["method"] == "mmtok"}


@pytest.mark.parametrize("case", unit_cases("mmtok"), ids=lambda case: case.id)
def test_it_keeps_what_the_authors_code_keeps(case):
    image, count = case.image(), case.params["count"]
    rows = what_to_cover(image.patches, image.projected(), image.words())
    order = pick_coverage(rows, count, candidates=~image.in_padding())
    assert_agrees("order", order, case.outputs["order"])
    assert_agrees("kept", MMTok(Count(count)).choose(image).kept, case.outputs["kept"])


def test_there_are_golden_words():
    assert len(questions_and_words()) == 6


@pytest.mark.parametrize(("question", "words"), questions_and_words().items())
def test_the_words_are_those_of_the_authors(question, words):
    assert content_words(question) == words.split()


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is it?", ["What", "is", "it"]),
        ("Is the DOG on the dog?", ["DOG", "on", "dog"]),
        (
            "Which is it?\nAnswer with the option's letter from the given choices directly.",
            ["Which", "is", "it"],
        ),
        ("?!", []),
        ("", []),
    ],
)
def test_words_of_function_go_unless_nothing_else_is_left(question, words):
    assert content_words(question) == words


def test_words_weigh_1_in_all_and_patches_half():
    image = unit_cases("mmtok")[-1].image()
    words = image.words()
    rows = what_to_cover(image.patches, image.projected(), words)
    assert rows.shape == (len(words) + 64, 64)
    assert rows[: len(words)].sum().item() == pytest.approx(1, abs=1e-5)
    assert rows[len(words) :].sum().item() == pytest.approx(0.5, abs=1e-5)


def test_a_question_without_words_leaves_the_image_to_be_covered():
    case = unit_cases("mmtok")[-1]
    nothing = replace(case, inputs=case.inputs | {"words": torch.zeros(0, 160)}).image()
    rows = what_to_cover(nothing.patches, nothing.projected(), nothing.words())
    assert rows.shape == (64, 64)
    assert len(MMTok(Count(8)).choose(nothing).kept) == 8


def test_padding_is_kept_only_where_nothing_else_is_left():
    case = unit_cases("mmtok")[-1]
    padding = list(range(4, 64))
    case = replace(case, entry=case.entry | {"params": {"exclude": padding}})
    assert MMTok(Count(6)).choose(case.image()).kept.tolist() == [0, 1, 2, 3, 4, 5]
    assert set(MMTok(Count(3)).choose(case.image()).kept.tolist()) < {0, 1, 2, 3}
