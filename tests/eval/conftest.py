"""The bundled model."""

import pytest

from llava.assistant import Assistant


@pytest.fixture(scope="session")
def shapes() -> Assistant:
    """The bundled model with its own reduction, ``TRIM:-1``."""
    return Assistant.load(device="cpu")
