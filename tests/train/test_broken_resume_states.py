"""A checkpoint of training with a damaged file or value: refused in one sentence, or resumed as before."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.errors import UserError
from llava.train.checkpoint import check_learned, load_parts
from llava.train.resume_state import check_optimizer, check_scheduler, check_shares
from llava.train.train import train
from tests.train.conftest import weights_of

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
STEP = "checkpoint-1"
RUNS = {
    "pretrain": {},
    "lora": {"lora_enable": True, "lora_r": 2},
}
STATE_KEYS = ("global_step", "max_steps", "epoch", "log_history", "train_batch_size", "stateful_callbacks")
ABSENT = object()
WRONG_VALUES: tuple[Any, ...] = (ABSENT, True, -1, 0.5, 10**30, float("nan"), "x", [], [1], {}, {"a": 1})
MOST_LETTERS = 600


def resume(command: Callable[..., list[str]], run: str, folder: Path) -> None:
    """Go on with a run behind the first of its two steps."""
    stage = "pretrain" if run == "pretrain" else "finetune"
    train(argv=command(stage, output_dir=folder, **SAVING, **RUNS[run]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of output, which the first test of a run fills."""
    return {name: tmp_path_factory.mktemp("runs") / name for name in RUNS}


@pytest.fixture(params=RUNS)
def stopped(request: pytest.FixtureRequest, runs: dict[str, Path], command: Any, tmp_path: Path) -> Any:
    """A run behind its first step, in a folder that is this test's, with the weights at its end."""
    name, done = request.param, runs[request.param]
    if not done.is_dir():
        resume(command, name, done)
    shutil.copytree(done / STEP, tmp_path / "out" / STEP)
    return name, tmp_path / "out", weights_of(done)


def refused(command: Any, run: str, out: Path) -> str:
    """Resume, which is refused, and return the sentence."""
    with pytest.raises(UserError) as error:
        resume(command, run, out)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < MOST_LETTERS
    return str(error.value)


def test_a_whole_state_is_resumed_from(stopped, command):
    run, out, expected = stopped
    resume(command, run, out)
    found = weights_of(out)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def damages(data: bytes) -> Iterator[bytes]:
    """Yield what may be in a file's place."""
    yield from (
        b"",
        data[: len(data) // 2],
        data[:-9],
        bytes(len(data)),
        b"<html></html>",
        b"[]",
        b"3",
        b"[" * 10**5,
    )
    yield pickle.dumps([1])


@pytest.mark.parametrize("stopped", ["pretrain"], indirect=True)
@pytest.mark.parametrize(
    "name", ["trainer_state.json", "training_run.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
)
def test_a_file_that_is_damaged_or_something_else(name, stopped, command):
    run, out, _ = stopped
    path = out / STEP / name
    for damage in damages(path.read_bytes()):
        path.write_bytes(damage)
        assert name in refused(command, run, out)
    path.unlink()
    path.mkdir()
    if name != "trainer_state.json":  # without which there is no checkpoint
        assert name in refused(command, run, out)
    path.rmdir()
    path.symlink_to("nowhere")
    if name != "trainer_state.json":
        assert name in refused(command, run, out)
    path.unlink()
    if name in ("optimizer.pt", "scheduler.pt"):
        assert f"has no {name}" in refused(command, run, out)


@pytest.mark.parametrize("stopped", ["pretrain"], indirect=True)
def test_values_of_the_trainers_state_that_cannot_be(stopped, command):
    run, out, _ = stopped
    path = out / STEP / "trainer_state.json"
    whole = json.loads(path.read_text())
    right = {("epoch", -1), ("epoch", 0.5), ("epoch", 10**30), ("stateful_callbacks", "{}")}
    for key in STATE_KEYS:
        for value in WRONG_VALUES:
            if isinstance(value, dict) and key == "stateful_callbacks":
                continue  # is not asked for
            if key not in ("global_step", "max_steps", "log_history") and value is ABSENT:
                continue
            if key == "log_history" and value == []:
                continue
            if (key, value if not isinstance(value, dict | list) else "") in right:
                continue
            changed = {**whole, key: value}
            path.write_text(json.dumps({name: one for name, one in changed.items() if one is not ABSENT}))
            assert key in refused(command, run, out)
    path.write_text(json.dumps({**whole, "from_the_future": 1}))
    assert "unknown key 'from_the_future'" in refused(command, run, out)
    path.write_text(json.dumps({**whole, "global_step": 2}))
    assert "says that global_step is 2, and the checkpoint is of 1" in refused(command, run, out)


def spoil_optimizer() -> dict[str, Callable[[dict], Any]]:
    """Return ways to change the state of an optimizer so that it is another one's."""
    return {
        "no groups": lambda state: state.pop("param_groups"),
        "a group less": lambda state: state["param_groups"].pop(),
        "a parameter less": lambda state: state["param_groups"][0]["params"].pop(),
        "another optimizer": lambda state: state["param_groups"][0].pop("betas"),
        "a rate that is none": lambda state: state["param_groups"][0].update(lr=float("nan")),
        "a rate of text": lambda state: state["param_groups"][0].update(lr="fast"),
        "no states": lambda state: state.pop("state"),
        "states in a list": lambda state: state.update(state=list(state["state"].values())),
        "a state too many": lambda state: state["state"].update({10**6: state["state"][0]}),
        "half a state": lambda state: state["state"][0].pop("exp_avg_sq"),
        "another parameter's": lambda state: state["state"][0].update(exp_avg=torch.zeros(3)),
        "a state of text": lambda state: state["state"][0].update(exp_avg="x"),
        "a list for a state": lambda state: state["state"].update({0: [1]}),
    }


def spoil_scheduler() -> dict[str, Callable[[dict], Any]]:
    """Return ways to change the state of a schedule so that it is another one's."""
    return {
        "a method overwritten": lambda state: state.update(step=3),
        "no rates": lambda state: state.pop("base_lrs"),
        "a rate too many": lambda state: state["base_lrs"].append(1.0),
        "rates of text": lambda state: state.update(base_lrs=["x"] * len(state["base_lrs"])),
        "a step of text": lambda state: state.update(last_epoch="x"),
        "no function": lambda state: state.update(lr_lambdas=3),
    }


def spoil_random_state() -> dict[str, Callable[[dict], Any]]:
    """Return ways to change states of generators of random numbers so that they are none."""
    return {
        "one missing": lambda state: state.pop("cpu"),
        "python's too short": lambda state: state.update(python=(3, (1, 2), None)),
        "python's too large": lambda state: state.update(python=(3, (2**70,) * 625, None)),
        "python's of text": lambda state: state.update(python="x"),
        "numpy's of text": lambda state: state.update(numpy="x"),
        "numpy's too short": lambda state: state.update(numpy=("MT19937", np.zeros(3, np.uint32), 1, 0, 0.0)),
        "torch's too short": lambda state: state.update(cpu=torch.zeros(3, dtype=torch.uint8)),
        "torch's of another type": lambda state: state.update(cpu=torch.zeros(5056)),
        "torch's of text": lambda state: state.update(cpu="x"),
    }


@pytest.fixture
def optimizer() -> torch.optim.Optimizer:
    """An optimizer of two groups of parameters that has made a step."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [one]} for one in model.parameters()])
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return optimizer


def test_a_state_of_an_older_torch_is_accepted(optimizer, tmp_path):
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["decoupled_weight_decay"]  # which came with torch 2.7
    torch.save(state, tmp_path / "optimizer.pt")
    check_optimizer(tmp_path, optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    state = {name: value for name, value in scheduler.state_dict().items() if name != "_is_initial"}
    torch.save(state, tmp_path / "scheduler.pt")
    check_scheduler(tmp_path, scheduler)


@pytest.mark.parametrize("how", spoil_optimizer())
def test_an_optimizer_of_something_else(how, optimizer, tmp_path):
    path = tmp_path / "optimizer.pt"
    torch.save(optimizer.state_dict(), path)
    check_optimizer(tmp_path, optimizer)
    state = torch.load(path)
    spoil_optimizer()[how](state)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"optimizer\.pt (is not of this run|does not hold a state)"):
        check_optimizer(tmp_path, optimizer)


@pytest.mark.parametrize("how", spoil_scheduler())
def test_a_schedule_of_something_else(how, optimizer, tmp_path):
    path, scheduler = tmp_path / "scheduler.pt", torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1)
    torch.save(scheduler.state_dict(), path)
    check_scheduler(tmp_path, scheduler)
    state = torch.load(path)
    spoil_scheduler()[how](state)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"scheduler\.pt is not of this run"):
        check_scheduler(tmp_path, scheduler)


@pytest.mark.parametrize("stopped", ["pretrain"], indirect=True)
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("optimizer.pt", spoil_optimizer()["another parameter's"]),
        ("scheduler.pt", spoil_scheduler()["a method overwritten"]),
        *[("rng_state.pth", how) for how in spoil_random_state().values()],
    ],
)
def test_a_state_that_is_whole_and_of_something_else(name, how, stopped, command):
    run, out, _ = stopped
    path = out / STEP / name
    state = torch.load(path, weights_only=False)  # of this very test
    how(state)
    torch.save(state, path)
    assert name in refused(command, run, out)


@pytest.mark.parametrize("stopped", ["lora"], indirect=True)
def test_weights_of_an_adapter_that_are_of_another_run(stopped, command):
    run, out, _ = stopped
    path = out / STEP / "adapter_model.safetensors"
    whole = load_file(path)
    name = min(whole)
    for weights in (
        {},
        {key: value for key, value in whole.items() if key != name},
        {**whole, name: torch.cat([whole[name]] * 2)},
        {**whole, "nobody.lora_A.weight": whole[name].clone()},
    ):
        save_file(weights, path)
        assert "adapter" in refused(command, run, out)
    path.write_bytes(b"x" * 100)
    assert "could not be read" in refused(command, run, out)


def test_learned_weights_that_are_of_another_run(tmp_path):
    model = torch.nn.Linear(3, 2)
    path = tmp_path / "mm_projector.bin"
    for weights, reason in (
        ({}, "lacks 2 of the weights that learn, the first is bias"),
        ({"bias": torch.zeros(2)}, "lacks 1 of the weights that learn, the first is weight"),
        ({"bias": torch.zeros(3), "weight": torch.zeros(2, 3)}, r"bias: \(3,\) instead of \(2,\)"),
        ({"bias": torch.zeros(2).int(), "weight": torch.zeros(2, 3)}, "stores bias as torch.int32"),
        ({**model.state_dict(), "more": torch.zeros(1)}, "holds 'more', which the model has not"),
    ):
        torch.save(weights, path)
        with pytest.raises(UserError, match=reason):
            load_parts(model, path)
    assert check_learned(model, {**model.state_dict(), "more": torch.zeros(1)}, path) == {"more"}


def test_shares_of_deepspeed_that_are_not_whole(tmp_path):
    folder = tmp_path / "global_step3"
    folder.mkdir()
    share = folder / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"a": torch.zeros(9)}, share)
    (tmp_path / "latest").write_text("global_step3\n")
    check_shares(tmp_path)
    share.write_bytes(share.read_bytes()[:-20])
    with pytest.raises(UserError, match="optim_states.pt is damaged"):
        check_shares(tmp_path)
    for name in ("global_step4", "../global_step3", "", "x" * 5000):
        (tmp_path / "latest").write_text(name)
        with pytest.raises(UserError, match="latest does not name a folder"):
            check_shares(tmp_path)
    (tmp_path / "latest").unlink()
    with pytest.raises(UserError, match="latest does not name a folder"):
        check_shares(tmp_path)
