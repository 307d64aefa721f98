"""Preparing and checking training data: ``python -m llava.data.check_data`` and ``prepare_data``."""
