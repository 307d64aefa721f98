"""Measurements: what the model's parts cost, and how exact they are on other devices and types."""
