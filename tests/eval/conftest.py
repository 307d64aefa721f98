"""The bundled model and the miniatures of all benchmarks."""

from pathlib import Path

import pytest

from llava.assistant import Assistant
from playground.shapes.make_benchmarks import make


@pytest.fixture(scope="session")
def shapes() -> Assistant:
    """The bundled model with its own reduction, ``TRIM:-1``."""
    return Assistant.load(device="cpu")


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniatures; tests that answer them name runs of their own."""
    folder = tmp_path_factory.mktemp("miniatures")
    make(folder)
    return folder
