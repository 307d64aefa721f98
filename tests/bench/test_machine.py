"""What is said of the machine beside its results."""

import torch

from llava.bench import machine

CPU = torch.device("cpu")


def test_a_card_becomes_the_name_of_a_file():
    assert machine.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert machine.slug("CPU, 2 cores") == "cpu-2-cores"


def test_the_commit_is_unknown_where_neither_git_nor_the_environment_says_it(monkeypatch):
    monkeypatch.delenv(machine.COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.commit() == "unknown"
    assert machine.describe_machine(CPU)["driver"] is None
    monkeypatch.setenv(machine.COMMIT_VARIABLE, "abc")
    assert machine.commit() == "abc"
