"""What the log says beside the loss, and where it can be sent."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from llava.errors import UserError
from llava.model.multimodal_encoder.token_reduction import NoReduction, VisualTokens
from llava.model.prompt_encoder import PromptEncoder, ReducedImage
from llava.train import argument_checks
from llava.train.argument_checks import REPORTERS_OF_EXTRA
from llava.train.arguments import parse_arguments
from llava.train.meter import TrainingMeter
from llava.train.train import train

CPU = torch.device("cpu")
READ = ["tokens_per_second", "images_per_second"]
VISUAL = ["visual_tokens_mean", "visual_tokens_min", "visual_tokens_max"]


def step(
    meter: TrainingMeter, encoder: PromptEncoder, ids: list[list[int]], counts: list[int], **more
) -> None:
    """Run a step whose images are reduced to so many tokens."""
    rows = torch.tensor(ids)
    batch = {"input_ids": rows, "attention_mask": rows != 0, **more}
    tokens = [VisualTokens(torch.zeros(count, 2), (count,), torch.ones(1, 1)) for count in counts]
    images = [ReducedImage(crops, None, NoReduction()) for crops in tokens]
    meter.read(batch, lambda: encoder.observers[0](images))
    assert set(batch) == {"input_ids", "attention_mask"}


@pytest.fixture
def encoder() -> PromptEncoder:
    model: Any = torch.nn.Module()
    return PromptEncoder(model)


def test_the_log_tells_the_tokens_of_every_image(encoder: PromptEncoder):
    meter = TrainingMeter()
    meter.watch(encoder)
    step(meter, encoder, [[1, -200, 5], [1, -200, 0]], [7, 3])
    step(meter, encoder, [[1, -200, 5]], [20])
    logs = meter.summarize(lambda table: table, CPU)
    assert [logs[name] for name in VISUAL] == [10, 3, 20]
    # 2 + 1 + 2 of text, 30 of images, none of padding.
    assert logs["tokens_per_second"] / logs["images_per_second"] == pytest.approx((5 + 30) / 3)
    assert meter.summarize(lambda table: table, CPU) == {}


def test_the_blank_image_of_a_batch_of_text_is_not_counted(encoder: PromptEncoder):
    meter = TrainingMeter()
    meter.watch(encoder)
    step(meter, encoder, [[1, 5]], [9])
    logs = meter.summarize(lambda table: table, CPU)
    assert set(logs) == set(READ)
    assert logs["images_per_second"] == 0


def test_all_processes_are_summed_up_and_skipped_records_stay_counted(encoder: PromptEncoder):
    meter = TrainingMeter()
    meter.watch(encoder)
    step(meter, encoder, [[1, -200]], [5], skipped=2)
    # The other process showed no image, so it has no least number of tokens.
    other = torch.tensor([[4, 1, 0, 0, torch.iinfo(torch.long).max, 0]])
    logs = meter.summarize(lambda table: torch.cat([table, other]), CPU)
    assert [logs[name] for name in VISUAL] == [5, 5, 5]
    assert logs["skipped_records"] == 3
    assert meter.summarize(lambda table: table, CPU) == {"skipped_records": 3}


@pytest.mark.slow
def test_tensorboard_shows_it(command, tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(argv=command("finetune", report_to="tensorboard"))
    events = EventAccumulator(str(next((tmp_path / "out").rglob("events.out.*")).parent))
    events.Reload()
    for name in ("loss", *READ):
        assert len(events.Scalars(f"train/{name}")) >= 2
    means = [event.value for event in events.Scalars("train/visual_tokens_mean")]
    assert all(1 <= mean <= 576 and math.isfinite(mean) for mean in means)


@pytest.mark.slow
def test_wandb_gets_it(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(argv=command("finetune", report_to="wandb"))
    import wandb

    wandb.finish()
    wandb.teardown()  # when its own process has ended, all is in the file
    run = next(tmp_path.rglob("run-*.wandb")).read_bytes()
    assert b"train/visual_tokens_mean" in run


def let_transformers_find(monkeypatch, *reporters: str) -> None:
    monkeypatch.setattr(argument_checks, "get_available_reporting_integrations", lambda: list(reporters))
    for name, package in (("azure_ml", "azureml"), ("flyte", "flytekit")):
        found = name in reporters
        monkeypatch.setattr(argument_checks, f"is_{package}_available", lambda found=found: found)


@pytest.mark.parametrize("reporter", ["tensorboard", "wandb"])
def test_a_report_that_is_not_installed_names_the_extra(command, monkeypatch, reporter: str):
    let_transformers_find(monkeypatch)
    with pytest.raises(
        UserError, match=rf"--report_to {reporter} needs {reporter}: pip install 'llava\[train\]'"
    ):
        parse_arguments(command("finetune", report_to=reporter))


@pytest.mark.parametrize(
    "reporter", [name for name in INTEGRATION_TO_CALLBACK if name not in REPORTERS_OF_EXTRA]
)
def test_every_other_report_needs_what_transformers_finds(command, monkeypatch, reporter: str):
    let_transformers_find(monkeypatch, "tensorboard")
    with pytest.raises(
        UserError, match=f"^--report_to {reporter} needs a package that .* accepted here: none, tensorboard$"
    ):
        parse_arguments(command("finetune", report_to=reporter))
    let_transformers_find(monkeypatch, reporter)
    parse_arguments(command("finetune", report_to=reporter))
