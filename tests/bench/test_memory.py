"""The peak of memory is that of the work, and not of what was before it."""

import sys

import pytest
import torch

from llava.bench import memory
from llava.bench.memory import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak of a process cannot begin again")
def test_a_peak_begins_again():
    before = torch.ones(64 * 2**20)  # 256 MiB
    del before
    watched = PeakMemory(CPU)
    nothing = watched.mib()
    assert nothing is not None
    work = torch.ones(32 * 2**20)
    del work
    peak = watched.mib()
    assert peak is not None
    assert 100 < peak - nothing < 200


def test_what_cannot_be_counted_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "RESET", tmp_path / "missing" / "clear_refs")
    assert PeakMemory(CPU).bytes() is None
    assert PeakMemory(torch.device("meta")).mib() is None
