"""The variants that were tried: their counts, and that positions and sizes do what they say."""

import math

import pytest
import torch

from llava.assistant import Assistant
from llava.compare.subjects import load_subjects
from llava.engine.base import Generation
from llava.eval.data_check import DATA
from llava.messages import Request
from llava.model.multimodal_encoder.reducers import registry
from llava.model.multimodal_encoder.token_reduction import Adaptive, Count, Ratio
from playground import reducer_variants, visual_positions
from playground.visual_positions import Prompt, answer, prompt_of

BUDGETS = {"Cover-tau": Ratio(0.99)}
TOKENS = {"Cover-pure": 16, "TRIM-pure": 16, "Cover-merged-x4": 20, "TRIM-merged-x4": 20}


@pytest.fixture(scope="module")
def assistant():
    return Assistant.load(device="cpu", token_reduction="TRIM:16")


@pytest.fixture(scope="module")
def question():
    (subject,) = load_subjects(["shapes"], DATA, 4)
    return subject.questions[0]


@pytest.mark.parametrize("variant", reducer_variants.VARIANTS, ids=lambda variant: variant.name)
def test_variants_keep_as_many_tokens_as_they_say(variant, assistant, question, monkeypatch):
    monkeypatch.setattr(registry, "REDUCERS", dict(registry.REDUCERS))
    reducer_variants.register()
    setting = str(variant(BUDGETS.get(variant.name, Count(16))))
    prompt = prompt_of(assistant, question, setting, "vicuna_v1")
    if variant.name == "Cover-tau":
        assert 2 <= prompt.tokens <= prompt.patches // 2 + 1
    else:
        assert prompt.tokens == TOKENS.get(variant.name, 17)
    assert registry.parse_reduction(setting) == variant(BUDGETS.get(variant.name, Count(16)))


def test_a_threshold_keeps_more_the_higher_it_is(assistant, question, monkeypatch):
    monkeypatch.setattr(registry, "REDUCERS", dict(registry.REDUCERS))
    reducer_variants.register()
    counts = [
        prompt_of(assistant, question, f"Cover-tau:{share}", "vicuna_v1").tokens
        for share in (0.9, 0.99, 0.999)
    ]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_every_variant_without_its_own_count_takes_trims(assistant):
    assert str(reducer_variants.Sharp(Adaptive())) == "Cover-sharp:-1"


def test_positions_are_those_of_the_patches_and_the_text_stands_where_it_always_does():
    prompt = Prompt(torch.zeros(8, 4), start=2, kept=torch.tensor([1, 5]), patches=9, tokens=3)
    assert prompt.positions(in_place=False).tolist() == list(range(8))
    # Patch 4 is the median of 0, 2, 3, 4, 6, 7, 8.
    assert prompt.positions(in_place=True).tolist() == [0, 1, 2 + 1, 2 + 5, 2 + 4, 2 + 9, 2 + 10, 2 + 11]


def test_the_size_is_added_for_all_that_look_back_at_the_merged_token():
    prompt = Prompt(torch.zeros(5, 4), start=1, kept=torch.tensor([0]), patches=4, tokens=2)
    bias = prompt.bias(with_size=True)
    assert bias[2:, 2].tolist() == pytest.approx([math.log(3)] * 3)
    assert torch.isinf(bias[:2, 2]).all()
    assert (prompt.bias(with_size=False).tril() == 0).all()


@pytest.mark.parametrize("reduction", ["none", "TRIM:16"])
def test_the_published_way_answers_as_the_engine_does(reduction, assistant):
    (subject,) = load_subjects(["shapes"], DATA, 12)
    for question in subject.questions[:12]:
        prompt = prompt_of(assistant, question, reduction, "vicuna_v1")
        said = answer(assistant, prompt, in_place=False, with_size=False, longest=16)
        (expected,) = assistant.answer_all(
            [
                Request.ask(
                    question.text,
                    question.image,
                    template="vicuna_v1",
                    token_reduction=reduction,
                    generation=Generation(max_new_tokens=16),
                )
            ]
        )
        assert said == expected.text
        if reduction == "none":  # nothing is dropped
            assert prompt.positions(in_place=True).tolist() == prompt.positions(in_place=False).tolist()


def test_the_table_has_a_row_for_each_way(capsys):
    assert not visual_positions.main(["--token-reduction", "TRIM:16", "--questions", "3"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines[2:]] == list(visual_positions.WAYS)


def test_a_number_is_no_threshold(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "REDUCERS", dict(registry.REDUCERS))
    arguments = ["--methods", "Cover-tau", "--budgets", "16", "--questions", "2", "--device", "cpu"]
    assert not reducer_variants.main([*arguments, "--out", str(tmp_path)])
    assert "Cover-tau:16 is no threshold" in capsys.readouterr().out


# PruMerge has one token more than patches, too, but by falling attention.
@pytest.mark.parametrize("reduction", ["Pool:16", "VisionZip:16", "PruMerge:16"])
def test_positions_are_known_of_patches_in_raster_order_and_one_mean_alone(reduction, capsys):
    assert visual_positions.main(["--token-reduction", reduction, "--questions", "2"]) == 2
    told = capsys.readouterr().err
    assert (
        f"error: {reduction} has other tokens than patches in raster order and one mean of the rest" in told
    )
    accepted = told.split("accepted: ")[1].strip().split(", ")
    assert {"none", "TRIM", "Random", "DivPrune", "SCOPE"} <= set(accepted)
    assert not {"Pool", "VisionZip", "PruMerge", "PruMerge+", "ToMe"} & set(accepted)


@pytest.mark.parametrize(
    "name",
    [name for name, of in registry.REDUCERS.items() if issubclass(of, visual_positions.IN_RASTER_ORDER)],
)
def test_accepted_reductions_have_patches_in_raster_order_and_one_mean(name, assistant, question):
    prompt = prompt_of(assistant, question, f"{name}:16", "vicuna_v1")
    whole = prompt_of(assistant, question, "none", "vicuna_v1")
    own = prompt.embeddings[prompt.start :][: len(prompt.kept)]
    torch.testing.assert_close(own, whole.embeddings[whole.start + prompt.kept])
    assert prompt.tokens - len(prompt.kept) in (0, 1)
