"""The data and the base that training is tested with too."""

from tests.train.conftest import data, language_model

__all__ = ["data", "language_model"]
