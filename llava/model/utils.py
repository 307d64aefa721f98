"""LLaVA's ``auto_upgrade``."""

from __future__ import annotations


def auto_upgrade(config: str) -> None:
    """Do nothing, under the name that code written for LLaVA calls before it loads an old checkpoint.

    There it rewrote the config of checkpoints from before LLaVA's model type had a name, after asking. They
    load here as they are.
    """
    del config
