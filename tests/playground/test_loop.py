from pathlib import Path

import numpy as np
import pytest
import torch

from llava.errors import UserError
from playground.hard_shapes import text_pretraining as hard_text
from playground.hard_shapes import train_clip as hard_clip
from playground.shapes import loop, text_pretraining, train_clip
from playground.shapes.loop import Ahead, fit
from playground.shapes.presets import PRESETS


def _losses(model, seen):
    def step_loss(step):
        seen.append(step)
        torch.manual_seed(step)
        batch = torch.randn(8, 3)
        return {"loss": (model(batch) - batch.sum(1, keepdim=True)).square().mean()}

    return step_loss


def _model():
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def test_loss_falls(tmp_path):
    model = _model()
    before = _losses(model, [])(0)["loss"].item()
    fit(model, _losses(model, []), 60, 0.1, tmp_path / "a.state")
    assert _losses(model, [])(0)["loss"].item() < 0.1 * before


def test_finished_training_is_not_repeated(tmp_path):
    model, seen = _model(), []
    fit(model, _losses(model, []), 5, 0.01, tmp_path / "a.state")
    again = _model()
    fit(again, _losses(again, seen), 5, 0.01, tmp_path / "a.state")
    assert not seen
    torch.testing.assert_close(again.weight, model.weight)


has_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@pytest.mark.parametrize("muon", [False, pytest.param(True, marks=has_muon)])
def test_interrupted_training_ends_where_an_uninterrupted_one_does(muon, tmp_path, monkeypatch):
    whole = _model()
    fit(whole, _losses(whole, []), 8, 0.01, tmp_path / "whole.state", muon=muon)
    monkeypatch.setattr("playground.shapes.loop.SAVE_SECONDS", 0.0)
    model = _model()
    losses = _losses(model, [])

    def stops(step):
        if step == 4:
            raise KeyboardInterrupt
        return losses(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model, stops, 8, 0.01, tmp_path / "part.state", muon=muon)
    resumed, seen = _model(), []
    fit(resumed, _losses(resumed, seen), 8, 0.01, tmp_path / "part.state", muon=muon)
    assert seen == [4, 5, 6, 7]
    torch.testing.assert_close(resumed.weight, whole.weight)


@has_muon
def test_muon_takes_the_matrices_between_layers_and_no_embedding():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    adam, muon = loop._optimizers(model, 0.1, muon=True)
    assert [id(weight) for group in muon.param_groups for weight in group["params"]] == [id(model[1].weight)]
    assert sum(len(group["params"]) for group in adam.param_groups) == 4


@pytest.mark.parametrize("processes", [0, 2])
def test_what_is_prepared_ahead_comes_in_the_order_of_the_steps(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "workers", lambda: processes)
    model, seen = _model(), []

    def prepare(step):
        torch.manual_seed(step)
        return step, torch.randn(8, 3)

    def loss(prepared):
        step, batch = prepared
        seen.append(step)
        return {"loss": (model(batch) - batch.sum(1, keepdim=True)).square().mean()}

    fit(model, Ahead(prepare, loss), 6, 0.01, tmp_path / "ahead.state")
    plain = _model()
    fit(plain, _losses(plain, []), 6, 0.01, tmp_path / "plain.state")
    assert seen == list(range(6))
    torch.testing.assert_close(model.weight, plain.weight)


@pytest.mark.parametrize(
    ("steps", "peak", "told"), [(9, 0.01, "with steps 5, not 9"), (5, 0.02, "with peak 0.01, not 0.02")]
)
def test_a_state_of_other_settings_is_not_gone_on_with(steps, peak, told, tmp_path):
    state = tmp_path / "a.state"
    model = _model()
    fit(model, _losses(model, []), 5, 0.01, state)
    with pytest.raises(UserError, match=f"{state} is of a training {told}; remove it to begin anew"):
        fit(model, _losses(model, []), steps, peak, state)


def test_a_state_from_before_settings_were_written_is_gone_on_with(tmp_path):
    model, seen = _model(), []
    fit(model, _losses(model, []), 3, 0.01, tmp_path / "a.state")
    state = torch.load(tmp_path / "a.state")
    assert (state.pop("steps"), state.pop("peak")) == (3, 0.01)
    torch.save(state, tmp_path / "a.state")
    fit(model, _losses(model, seen), 5, 0.01, tmp_path / "a.state")
    assert seen == [3, 4]


def test_a_state_of_another_version_is_told_apart(tmp_path):
    model = _model()
    torch.save({"model": model.state_dict(), "optimizer": {}, "step": 3}, tmp_path / "old.state")
    with pytest.raises(UserError, match=r"old.state is of another version of this training; remove it"):
        fit(model, _losses(model, []), 5, 0.01, tmp_path / "old.state")


def test_a_torch_without_muon_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    model = _model()
    with pytest.raises(UserError, match=r"needs Muon, which torch 2.9 and newer have"):
        fit(model, _losses(model, []), 5, 0.01, tmp_path / "a.state", muon=True)


@pytest.mark.parametrize("module", [train_clip, hard_clip, text_pretraining, hard_text])
def test_a_result_that_is_deleted_is_trained_anew(module, tmp_path, monkeypatch):
    """What `fit` keeps of a finished training once made new weights out of old ones."""
    preset, result = PRESETS["smoke"], tmp_path / "result"
    kept = []

    def fit_nothing(model, work, steps, peak, state_file, **settings):
        state_file.touch()
        kept.append(state_file)

    monkeypatch.setattr(module, "fit", fit_nothing)
    if module in (train_clip, hard_clip):
        np.save(tmp_path / "coverage.npy", np.zeros(1))
        module.train_clip(preset, tmp_path, result)
    else:
        module.pretrain_text(preset, result)
    assert (result / "model.safetensors").exists()
    assert kept and not any(map(Path.exists, kept))
