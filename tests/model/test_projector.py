"""The projector of each type, under the weight names of checkpoints."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llava.errors import UserError
from llava.model.multimodal_projector.builder import build_vision_projector


def build(kind, width=6):
    return build_vision_projector(
        SimpleNamespace(mm_projector_type=kind, mm_hidden_size=width, hidden_size=4)
    )


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (None, ["weight", "bias"]),
        ("linear", ["weight", "bias"]),
        ("mlp1x_gelu", ["0.weight", "0.bias"]),
        ("mlp2x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias"]),
        ("mlp3x_gelu", ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]),
    ],
)
def test_weight_names_and_widths(kind, names):
    projector = build(kind)
    assert list(projector.state_dict()) == names
    assert projector(torch.zeros(3, 6)).shape == (3, 4)


def test_identity():
    assert isinstance(build("identity", width=4), nn.Identity)
    with pytest.raises(
        UserError, match="identity needs equal widths; the vision tower's is 6, the language model's 4"
    ):
        build("identity")


@pytest.mark.parametrize("kind", ["mlp", "mlp0x_gelu", "mlp2x_relu", "resampler"])
def test_other_types_are_refused(kind):
    with pytest.raises(UserError, match=f"{kind!r}; accepted: linear"):
        build(kind)
