"""Reports to Weights & Biases without a key end in a sentence, and nobody is asked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEITHER = ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_IDENTITY_TOKEN_FILE")
CHECK = "from llava.train.wandb_login import check_wandb_login; check_wandb_login()"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({}, "--report_to wandb has no key: run wandb login, set WANDB_API_KEY, or keep the curves here"),
        ({"WANDB_MODE": "offline"}, None),
        ({"WANDB_MODE": "disabled"}, None),
        ({"WANDB_API_KEY": "0123456789" * 4}, None),
    ],
)
def test_a_key_is_needed_unless_nothing_is_sent(
    variables: dict[str, str], sentence: str | None, tmp_path: Path
):
    kept = {name: value for name, value in os.environ.items() if name not in NEITHER}
    finished = subprocess.run(
        [sys.executable, "-c", CHECK],
        env={**kept, "HOME": str(tmp_path), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode == 0) is (sentence is None)
    if sentence is not None:
        assert finished.stderr.splitlines()[-1].startswith(f"llava.errors.UserError: {sentence}")
