"""Pictures and questions through our own tower, against the authors' code on the same tiny models."""

import json

import pytest
import torch
from safetensors.torch import load_file

from llava.model.multimodal_encoder.reducers.base import Signal
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from tests.conftest import TINY_LLAVA
from tests.model.reducers.golden import FOLDER, assert_agrees

PATCHES = 576
LONG = "There are several objects"  # more than CLIP's 77 tokens, of which we read the first


def setting(entry):
    """Write a case's parameters as ``mm_vision_token_reduce_func`` has them."""
    params = entry["params"]
    names = {"divprune": "DivPrune", "cdpruner": "CDPruner", "fastervlm": "FasterVLM", "hiprune": "HiPrune"}
    names |= {"tome_output": "ToMe", "scope": "SCOPE", "mmtok": "MMTok", "eadp": "EADP"}
    names |= {"visionzip": "VisionZip", "prumerge": "PruMerge", "prumerge_plus": "PruMerge+"}
    if entry["method"] == "visionzip":
        budget = params["dominant"] + params["contextual"]
    elif "ratio" in params:
        share = 2 if entry["method"] == "prumerge_plus" else 1
        budget = -1 if params["ratio"] is None else round(params["ratio"] * share * PATCHES)
    else:
        budget = params["count"]
    return f"{names[entry['method']]}:{budget}"


def cases():
    groups = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["groups"]
    (entries,) = (group["cases"] for group in groups if group["kind"] == "e2e")
    return [
        pytest.param(entry, id=entry["key"])
        for entry in entries
        if not (entry["method"] in ("cdpruner", "eadp") and entry["question"].startswith(LONG))
    ]


@pytest.fixture(scope="module")
def outputs():
    return load_file(FOLDER / "e2e.outputs.safetensors")


@pytest.fixture(scope="module")
def encoder():
    from llava.assistant import Assistant

    return Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1").encoder


@pytest.fixture(scope="module")
def encoded(encoder, pictures):
    return {
        name: encoder.encode([encoder.preprocess(picture)], [picture.size], list(Signal))[0]
        for name, picture in pictures.items()
    }


@pytest.mark.parametrize("entry", cases())
def test_the_authors_tokens_come_out(entry, encoder, encoded, outputs):
    reducer = parse_reduction(setting(entry))
    (found,) = encoder.reduce([encoded[entry["image"]]], [entry["question"]], [reducer])
    tokens = found.crops
    assert tokens.counts == (entry["visual_tokens"],)
    if "kept" in entry["outputs"]:
        kept = torch.unique(outputs[f"{entry['key']}/kept"].long())
        assert_agrees("kept", tokens.kept[0].nonzero().flatten(), kept)
    if "tokens" in entry["outputs"]:
        assert_agrees("tokens", tokens.packed, outputs[f"{entry['key']}/tokens"])
    if tokens.projected is not None:
        again = encoder._model.project_packed(tokens.packed)
        torch.testing.assert_close(tokens.projected, again, atol=1e-5, rtol=1e-4)
