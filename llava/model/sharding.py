"""Weights that DeepSpeed's ZeRO-3 has split over the processes: writing to them, and reading them whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def gathered_parameters(parameters: Iterable[nn.Parameter], written: bool = True) -> Iterator[None]:
    """Put split parameters together for a while; every process must enter.

    Args:
        parameters: Of a model that may be split; nothing happens to those that are not.
        written: Whether they are written to; what the first process wrote is then kept.
    """
    split = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split, modifier_rank=0 if written else None):
        yield


def copy_gathered(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """Copy named parameters to the CPU, one after the other; every process must call it.

    Args:
        parameters: Names and parameters, as ``named_parameters`` of a model yields them.
    """
    copies = {}
    for name, parameter in parameters:
        with gathered_parameters([parameter], written=False):
            copies[name] = parameter.detach().cpu().clone()
    return copies
