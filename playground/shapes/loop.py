"""A small training loop that can be interrupted and goes on where it was."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from llava.errors import UserError

SAVE_SECONDS = 60.0
# What a step reports: its loss, and whatever is worth showing beside it.
Report = dict[str, Tensor]


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def workers() -> int:
    """Return how many processes may prepare steps: none where two processors have enough to do."""
    count = os.cpu_count() or 1
    return min(12, count - 2) if count > 2 else 0


class _Steps(Dataset[Any]):
    """What is prepared for steps, in their order."""

    def __init__(self, prepare: Callable[[int], Any], steps: range) -> None:
        self._prepare, self._steps = prepare, steps

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, index: int) -> Any:
        return self._prepare(self._steps[index])


@dataclass(frozen=True, slots=True)
class Ahead:
    """A loss whose data can be made ahead.

    Attributes:
        prepare: From the number of a step to its data; run in other processes where there are processors for
            them, so that a GPU need not wait.
        loss: From the data of a step to its report.
    """

    prepare: Callable[[int], Any]
    loss: Callable[[Any], Report]


def fit(
    model: nn.Module,
    step_loss: Callable[[int], Report] | Ahead,
    steps: int,
    peak: float,
    state_file: Path,
    *,
    muon: bool = False,
) -> None:
    """Minimize a loss: linear warm-up, cosine decay, gradients clipped to norm 1.

    With AdamW, or with Muon for the matrices between layers and AdamW for the rest, which learns the same in
    a half to a third of the steps.

    Args:
        model: Changed in place.
        step_loss: From the number of a step to its report, whose ``loss`` is minimized. Must take its random
            numbers from the number of the step, so that a resumed run sees what an uninterrupted one would.
        steps: How many steps.
        peak: Highest learning rate.
        state_file: Where to keep the state; read if it is there. To be removed once the result is written,
            lest another training of the same name takes it for its own.
        muon: Whether to use it.

    Raises:
        UserError: If the state is of a training of other settings.
    """
    optimizers = _optimizers(model, peak, muon)
    settings = {"steps": steps, "peak": peak}
    first = _restore(model, optimizers, settings, state_file)
    saved = time.monotonic()
    work = step_loss if isinstance(step_loss, Ahead) else Ahead(int, step_loss)
    count = workers() if isinstance(step_loss, Ahead) else 0
    data = DataLoader(_Steps(work.prepare, range(first, steps)), batch_size=None, num_workers=count)
    progress = tqdm(data, initial=first, total=steps, desc=state_file.stem, mininterval=10)
    model.train()
    for step, prepared in enumerate(progress, start=first):
        report = work.loss(prepared)
        model.zero_grad(set_to_none=True)
        report["loss"].backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * _schedule(step, steps)
            optimizer.step()
        if step % 20 == 0:
            shown = {name: f"{value.item():.3f}" for name, value in report.items()}
            progress.set_postfix(shown, refresh=False)
        if time.monotonic() - saved > SAVE_SECONDS or step == steps - 1:
            _save(model, optimizers, settings | {"step": step + 1}, state_file)
            saved = time.monotonic()
    model.eval()


def _schedule(step: int, steps: int) -> float:
    warm_up = max(1, steps // 30)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _optimizers(model: nn.Module, peak: float, muon: bool) -> list[torch.optim.Optimizer]:
    embeddings = {
        id(weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    between = [weight for weight in weights if muon and weight.ndim == 2 and id(weight) not in embeddings]
    chosen = {id(weight) for weight in between}
    rest = [weight for weight in weights if id(weight) not in chosen]
    groups = [
        {"params": [weight for weight in rest if weight.ndim > 1], "weight_decay": 0.05},
        {"params": [weight for weight in rest if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98))]
    if between and not hasattr(torch.optim, "Muon"):
        raise UserError(
            f"this training needs Muon, which torch 2.9 and newer have; here is {torch.__version__}"
        )
    if between:
        # Its updates are as large as AdamW's, so that both take the same learning rate.
        optimizers.append(torch.optim.Muon(between, peak, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def _save(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: dict[str, float],
    state_file: Path,
) -> None:
    unfinished = state_file.with_suffix(".unfinished")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, **progress}, unfinished)
    unfinished.rename(state_file)


def _restore(
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    settings: dict[str, float],
    state_file: Path,
) -> int:
    if not state_file.exists():
        return 0
    state = torch.load(state_file, map_location=next(model.parameters()).device, weights_only=True)
    for name, value in settings.items():
        # Earlier versions wrote no settings.
        if (there := state.get(name, value)) != value:
            raise UserError(
                f"{state_file} is of a training with {name} {there}, not {value}; remove it to begin anew"
            )
    if len(state.get("optimizers", ())) != len(optimizers):
        raise UserError(f"{state_file} is of another version of this training; remove it to begin anew")
    model.load_state_dict(state["model"])
    for optimizer, own in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(own)
    return int(state["step"])
