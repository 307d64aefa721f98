"""The trainings of a build, in processes of their own."""

import sys
from pathlib import Path

import pytest

from llava.errors import UserError
from playground.shapes.stages import run_stage1


def test_a_training_that_fails_leaves_one_sentence_and_no_result(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    output = tmp_path / "stage1"
    with pytest.raises(
        UserError, match=f"the training of {output} ended with exit code 1; its own error is above"
    ):
        run_stage1(tmp_path, "none", output)
    assert not output.exists()
