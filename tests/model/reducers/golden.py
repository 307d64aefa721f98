"""The authors' own answers: `tests/golden/reducers`, made as its cases.json says, one image per case."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from llava.model.multimodal_encoder.reducers import attention
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "reducers"
TOLERANCE = 2e-5  # of floats, relative to the largest: what the goldens' own checker allows


@dataclass
class Case:
    """One case of one method.

    Attributes:
        id: For pytest.
        entry: As cases.json has it.
        inputs: Float32 tensors of one image.
        outputs: What the authors' code gave, by name.
        side: Patches along one side.
        heads: Of the tower's attention.
    """

    id: str
    entry: dict
    inputs: dict
    outputs: dict
    side: int
    heads: int

    @property
    def params(self):
        """The method's setting."""
        return self.entry["params"]

    def image(self):
        """Return the inputs as a method asks for them."""
        return UnitImage(self)


def unit_cases(method):
    """Return the unit cases of a method."""
    groups = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))["groups"]
    found = []
    for group in groups:
        if group["kind"] != "unit":
            continue
        inputs = {name: one.float() for name, one in load_file(FOLDER / group["inputs"]).items()}
        outputs = load_file(FOLDER / group["outputs"])
        for entry in group["cases"]:
            if entry["method"] == method:
                own = {name: outputs[f"{entry['key']}/{name}"] for name in entry["outputs"]}
                name = f"{group['name']}-{entry['key']}"
                found.append(Case(name, entry, inputs, own, group["side"], group["heads"]))
    return found


class UnitImage:
    """An `ImageInputs` of a unit case, whose questions may have several pieces."""

    def __init__(self, case):
        self._case, self._inputs = case, case.inputs
        self.patches = case.inputs["hidden"][1:]

    def cls(self):
        return self._inputs["hidden"][0]

    def cls_attention(self):
        return attention.cls_attention(self._inputs["q_sel"], self._inputs["k_sel"], self._case.heads)

    def keys(self):
        return attention.mean_keys(self._inputs["k_sel"], self._case.heads)

    def received_attention(self):
        return tuple(
            attention.received_attention(self._inputs[f"q_{one}"], self._inputs[f"k_{one}"], self._case.heads)
            for one in ("mid", "sel")
        )

    def next_layer(self):
        queries, keys = self._inputs["q_last"], self._inputs["k_last"]
        return attention.cls_attention(queries, keys, 1), keys[1:]

    def projected(self):
        return self._inputs["projected"]

    def joint(self):
        return self._inputs["joint"]

    def question(self):
        return self._inputs["text"]

    def question_states(self):
        return self._inputs["text_tokens"]

    def words(self):
        return self._inputs["words"]

    def in_padding(self):
        excluded = torch.zeros(len(self.patches), dtype=torch.bool)
        excluded[self._case.params.get("exclude", [])] = True
        return excluded


def assert_agrees(name, found, expected):
    """Compare one output as the goldens' own checker does: sets exactly, floats relative to the largest."""
    found = torch.as_tensor(found).detach()
    if expected.is_floating_point():
        assert found.shape == expected.shape, name
        worst = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
        assert worst <= TOLERANCE, f"{name}: relative difference {worst:.1e}"
    else:
        found, expected = found.long().flatten(), expected.long().flatten()
        if name == "kept":
            found, expected = found.sort().values, expected.sort().values
        assert torch.equal(found, expected), name
