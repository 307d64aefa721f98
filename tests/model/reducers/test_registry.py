"""The table of all reductions, and what people read about them."""

import json
import re

import pytest

from llava.errors import UserError
from llava.main import main
from llava.model.multimodal_encoder.reducers.base import Signal
from llava.model.multimodal_encoder.reducers.registry import (
    JOINT,
    METHODS,
    REDUCERS,
    describe,
    parse_reduction,
    reads_question,
    signals_of,
)
from tests.conftest import GOLDEN

DOCS = GOLDEN.parents[1] / "docs"


@pytest.mark.parametrize("name", REDUCERS)
def test_a_setting_is_read_and_written_by_its_name(name):
    assert str(parse_reduction(f"{name}:64")) == f"{name}:64"


@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_value_is_refused_in_the_words_of_the_method(name):
    message = f"^'{re.escape(name)}:0' is not a token reduction: {re.escape(name)} takes a whole number"
    with pytest.raises(UserError, match=message):
        parse_reduction(f"{name}:0")


def test_another_name_is_refused_with_those_there_are():
    with pytest.raises(
        UserError, match="'Trim:64' is not a token reduction; accepted: .*EADP.*llava reducers"
    ):
        parse_reduction("Trim:64")


def test_the_accepted_forms_say_where_minus_one_is_among_them():
    with pytest.raises(UserError) as refused:
        parse_reduction("Covr:-1")
    _, adaptive, fixed = re.split(r" r or k behind ", str(refused.value).partition(" (llava")[0])
    assert adaptive == "PruMerge, PruMerge+, TRIM+DPP, or"
    for name in METHODS:
        assert (name in re.split(", ", fixed)) == (name not in adaptive.split(", "))
    assert "-1, r or k behind PruMerge" in str(refused.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_message_counts_patches_where_a_token_for_the_rest_is_added(name):
    adds = name in ("PruMerge", "PruMerge+", "TRIM+DPP")
    counted = "patches beside a token for the rest, or" if adds else "visual tokens, or"
    with pytest.raises(UserError, match=f"takes a whole number of {counted}"):
        parse_reduction(f"{name}:0")


def test_the_list_has_a_line_for_each_with_what_it_reads(capsys):
    assert [line["name"] for line in describe()] == list(REDUCERS)
    main(["reducers"])
    shown = capsys.readouterr().out
    assert all(f"| {name} " in shown for name in REDUCERS)
    main(["reducers", "--json"])
    lines = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert lines["SCOPE"]["question"] == "no"
    assert lines["MMTok"]["question"] == "words"
    assert "the layer behind the selected one" in lines["PruMerge"]["reads"]
    assert lines["TRIM"]["paper"] == "arXiv:2409.10994"


ATTENTION, KEYS = Signal.CLS_ATTENTION.value, Signal.KEYS.value
WORDS = "the language model's embeddings of the question's words"


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("TRIM", JOINT),
        ("VisionZip", f"{Signal.CLS.value}, {ATTENTION}, {KEYS}"),
        ("DivPrune", "projected patches"),
        ("CDPruner", f"projected patches, {JOINT}"),
        ("FasterVLM", ATTENTION),
        ("VisPruner", f"patches, {ATTENTION}"),
        ("ToMe", f"patches, {KEYS}"),
        ("SCOPE", f"patches, {ATTENTION}"),
        ("MMTok", f"patches, projected patches, {WORDS}, padding"),
        ("EADP", f"projected patches, {JOINT}"),
    ],
)
def test_the_list_says_all_that_a_method_reads(name, reads):
    assert {line["name"]: line["reads"] for line in describe()}[name] == reads


def test_the_page_about_methods_has_a_row_for_each():
    table = (DOCS / "methods.md").read_text(encoding="utf-8").split("The last column")[0]
    rows = re.findall(r"^\| `([^:`]+):", table, re.MULTILINE)
    assert rows == list(REDUCERS)


def test_what_reducers_need_is_asked_for_together():
    reducers = [parse_reduction(one) for one in ("none", "TRIM:-1", "SCOPE:16", "ToMe:16", "MMTok:16")]
    assert signals_of(reducers) == {Signal.CLS_ATTENTION, Signal.KEYS}
    assert signals_of(reducers[:2]) == frozenset()
    assert [reads_question(one) for one in reducers] == [False, True, False, False, True]
