"""How much memory is free: on the machine, and within the limits of control groups."""

import pytest
import torch

from llava.eval import free_memory
from llava.eval.free_memory import free_bytes

CPU = torch.device("cpu")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes control groups: a folder of one gets its limit, usage and cached bytes."""
    monkeypatch.setattr(free_memory, "GROUPS", tmp_path)
    monkeypatch.setattr(free_memory, "GROUPS_OF_THIS_PROCESS", tmp_path / "own")

    def make(own, files, folders):
        (tmp_path / "own").write_text(own)
        for folder, (limit, usage, cached) in folders.items():
            group = tmp_path / folder
            group.mkdir(parents=True, exist_ok=True)
            (group / files[0]).write_text(f"{limit}\n")
            (group / files[1]).write_text(f"{usage}\n")
            (group / "memory.stat").write_text(f"anon 5\n{files[2]} {cached}\n")

    return make


def test_free_memory_is_some(groups):
    assert 2**20 < free_bytes(CPU) < 2**45


def test_a_limit_of_a_group_or_of_one_around_it_holds(groups):
    groups("0::/job/step\n", VERSION_2, {"job/step": ("max", 300, 0), "job": (1000, 400, 100)})
    assert free_bytes(CPU) == 700  # files that are only cached make room
    groups("0::/job/step\n", VERSION_2, {"job/step": (500, 300, 0)})
    assert free_bytes(CPU) == 200
    groups("0::/job/step\n", VERSION_2, {"job/step": (200, 300, 0)})  # lowered while it was in use
    assert free_bytes(CPU) == 0


@pytest.mark.parametrize("folder", ["memory/docker/id", "memory"])  # on the machine, and in the container
def test_a_limit_of_the_first_version_holds(folder, groups):
    own = "5:cpu,cpuacct:/docker/id\n4:memory:/docker/id\n1:name=systemd:/a:b\n0::/\n"
    groups(own, VERSION_1, {folder: (1000, 400, 100)})
    assert free_bytes(CPU) == 700


def test_groups_without_a_limit_take_nothing_away(groups):
    unlimited = free_bytes(CPU)
    groups("4:memory:/a\n", VERSION_1, {"memory/a": (9223372036854771712, 400, 0)})
    assert free_bytes(CPU) > unlimited / 2
    groups("0::/a\n", VERSION_2, {"a": ("max", 400, 0)})
    assert free_bytes(CPU) > unlimited / 2
