"""The projector as a file of its own: from every form of weights, and that a model takes it back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llava.model.checkpoint_files import iterate_weights
from llava.model.weights import load_projector
from scripts.extract_mm_projector import main
from tests.conftest import TINY_LLAVA

PROJECTOR = {name: value for name, value in iterate_weights(TINY_LLAVA) if "mm_projector" in name}
Form = Callable[[Path, dict[str, torch.Tensor]], object]


def in_shards(save: Callable[[dict, Path], object], stem: str, suffix: str) -> Form:
    """Write weights in two files and an index, as transformers does."""

    def write(folder: Path, weights: dict[str, torch.Tensor]) -> None:
        names = sorted(weights)
        shards = {f"{stem}-0000{i + 1}-of-00002{suffix}": names[i::2] for i in range(2)}
        for shard, own in shards.items():
            save({name: weights[name] for name in own}, folder / shard)
        places = {name: shard for shard, own in shards.items() for name in own}
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": places}))

    return write


FORMS: dict[str, Form] = {
    "bin": lambda folder, weights: torch.save(weights, folder / "pytorch_model.bin"),
    "safetensors": lambda folder, weights: save_file(weights, folder / "model.safetensors"),
    "bin shards": in_shards(torch.save, "pytorch_model", ".bin"),
    "safetensors shards": in_shards(save_file, "model", ".safetensors"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_projector_comes_out_of_every_form_of_weights(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    FORMS[form](tmp_path, dict(iterate_weights(TINY_LLAVA)))
    output = tmp_path / "new" / "folder" / "projector.bin"
    assert main(["--model", str(tmp_path), "--out", str(output)]) == 0
    saved = torch.load(output, weights_only=True)
    assert saved.keys() == PROJECTOR.keys()
    assert all(torch.equal(saved[name], value) for name, value in PROJECTOR.items())
    assert all(saved[name].dtype is value.dtype for name, value in PROJECTOR.items())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(saved)


def test_a_model_takes_the_projector_back(tmp_path: Path, loaded):
    model = loaded[1]
    assert main(["--model-path", str(TINY_LLAVA), "--output", str(tmp_path / "mm_projector.bin")]) == 0
    projector = model.get_model().mm_projector
    features = torch.randn(3, 48)
    with torch.no_grad():
        before = projector(features)
        blank = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.GELU(), torch.nn.Linear(64, 64))
        path = tmp_path / "mm_projector.bin"
        load_projector(blank, torch.load(path, weights_only=True), path)
        assert torch.equal(blank(features), before)


def test_nothing_is_stored_but_the_projector(tmp_path: Path):
    """A slice of a large tensor would drag the whole of it along."""
    large = torch.randn(1000, 1000)
    torch.save({"model.mm_projector.weight": large[:2], "large": large}, tmp_path / "pytorch_model.bin")
    assert main(["--model-path", str(tmp_path), "--output", str(tmp_path / "out.bin")]) == 0
    assert (tmp_path / "out.bin").stat().st_size < 20_000


def test_what_cannot_work_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_file({"model.norm.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    mistakes = {
        (str(tmp_path), "out.bin"): "no weights are named mm_projector",
        ("/nowhere", "out.bin"): "no model folder '/nowhere'",
        (str(TINY_LLAVA), str(tmp_path)): f"cannot be written to '{tmp_path}': Is a directory",
        (str(TINY_LLAVA), "/dev/null/out.bin"): "cannot be written to '/dev/null/out.bin'",
    }
    for (model, output), sentence in mistakes.items():
        assert main(["--model-path", model, "--output", output]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
        assert sentence in captured.err
