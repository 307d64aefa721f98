"""Talking to a loaded model: in a terminal, and over the network."""
