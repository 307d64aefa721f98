"""Engines: embeddings in, tokens out."""
