"""The model: vision tower, reducer, projector, language model, and how checkpoints become one."""
