import pytest
import torch

from playground.shapes.loop import fit


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


def test_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, monkeypatch):
    whole = _model()
    fit(whole, _losses(whole, []), 8, 0.01, tmp_path / "whole.state")
    monkeypatch.setattr("playground.shapes.loop.SAVE_SECONDS", 0.0)
    model = _model()
    losses = _losses(model, [])

    def stops(step):
        if step == 4:
            raise KeyboardInterrupt
        return losses(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model, stops, 8, 0.01, tmp_path / "part.state")
    resumed, seen = _model(), []
    fit(resumed, _losses(resumed, seen), 8, 0.01, tmp_path / "part.state")
    assert seen == [4, 5, 6, 7]
    torch.testing.assert_close(resumed.weight, whole.weight)
