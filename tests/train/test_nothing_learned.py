"""A run that learns nothing, or nothing finite, ends with a sentence and leaves nothing behind."""

import json

import pytest
import torch

from llava.errors import UserError
from llava.train import llava_trainer
from llava.train.train import train
from tests.train.conftest import weights_of


@pytest.fixture
def spoil(monkeypatch):
    """Make the loss of some micro-batches not finite."""

    def spoil(*numbers: int, value: float = float("nan")):
        from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM

        forward, calls = LlavaLlamaForCausalLM.forward, []

        def spoiled(self, *args, **kwargs):
            result = forward(self, *args, **kwargs)
            calls.append(None)
            if len(calls) in numbers:
                result.loss = result.loss * value
            return result

        monkeypatch.setattr(LlavaLlamaForCausalLM, "forward", spoiled)

    return spoil


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_and_records(command, tmp_path, spoil, value):
    spoil(2, value=value)
    flags = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4}
    with pytest.raises(UserError) as caught:
        train(argv=command("finetune", **flags))
    message = str(caught.value)
    assert f"step 2: the loss is {value} for the records " in message
    assert "--skip_nonfinite" in message
    out = tmp_path / "out"
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-1"]
    assert not weights_of(out)
    assert all(torch.isfinite(one).all() for one in weights_of(out / "checkpoint-1").values())


def test_a_bounded_number_may_be_left_out(command, tmp_path, spoil, caplog):
    spoil(1, 3)
    train(argv=command("finetune", max_steps=4, skip_nonfinite=2))
    assert "left out, 1 of at most 2" in caplog.text and "left out, 2 of at most 2" in caplog.text
    found = weights_of(tmp_path / "out")
    assert found and all(torch.isfinite(one).all() for one in found.values())


def test_one_more_ends_the_run(command, spoil):
    spoil(1, 2)
    with pytest.raises(UserError, match="step 2: the loss is nan for .* after 1 others that were left out"):
        train(argv=command("finetune", max_steps=4, skip_nonfinite=1))


def test_a_gradient_that_is_not_finite_ends_the_run(command, tmp_path, monkeypatch):
    backward = llava_trainer.LLaVATrainer.training_step

    def spoiled(self, model, *args, **kwargs):
        loss = backward(self, model, *args, **kwargs)
        next(one for one in self.model.parameters() if one.grad is not None).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(llava_trainer.LLaVATrainer, "training_step", spoiled)
    with pytest.raises(UserError, match="step 1: the gradient is (nan|inf), though the loss is finite"):
        train(argv=command("finetune"))
    assert not weights_of(tmp_path / "out")


def test_an_epoch_without_supervised_tokens_is_no_success(command, tmp_path):
    with pytest.raises(UserError, match="epoch 1 has taught nothing: no token of its records was supervised"):
        train(argv=command("finetune", max_steps=-1, num_train_epochs=2, model_max_length=20))
    assert not weights_of(tmp_path / "out")


def test_images_that_are_all_damaged_are_no_success(command, data, tmp_path):
    (tmp_path / "images").mkdir()
    records = json.loads((data / "captions.json").read_text())
    for record in records:
        (tmp_path / "images" / record["image"]).write_text("no image")
    flags = {"image_folder": tmp_path / "images", "on_bad_image": "skip"}
    with pytest.raises(UserError, match="has taught nothing.*no image could be read"):
        train(argv=command("pretrain", max_steps=-1, num_train_epochs=1, **flags))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"num_train_epochs": 0}, "--num_train_epochs is 0; accepted: a number above 0"),
        ({"num_train_epochs": -1}, "--num_train_epochs is -1; accepted: a number above 0"),
        ({"num_train_epochs": "nan"}, "--num_train_epochs is nan; accepted: a number above 0"),
        ({"num_train_epochs": "inf"}, "--num_train_epochs is inf; accepted: a number above 0"),
        ({"learning_rate": -1e-3}, "--learning_rate is -0.001; accepted: 0 or more"),
        ({"learning_rate": "nan"}, "--learning_rate is nan; accepted: 0 or more"),
        ({"mm_projector_lr": "inf"}, "--mm_projector_lr is inf; accepted: 0 or more"),
        ({"weight_decay": -1}, "--weight_decay is -1.0; accepted: 0 or more"),
        ({"skip_nonfinite": -1}, "--skip_nonfinite is -1; accepted: 0 or more"),
    ],
)
def test_settings_with_which_nothing_would_be_learned_are_refused(command, flags, sentence):
    with pytest.raises(UserError) as caught:
        train(argv=command("finetune", **{"max_steps": -1, **flags}))
    assert sentence in str(caught.value)
