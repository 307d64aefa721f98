"""One run at a time writes to a folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from llava.errors import UserError
from llava.folder_lock import lock_folder

HOLD = """
import sys
from llava.folder_lock import lock_folder
with lock_folder(sys.argv[1], "--output_dir"):
    print("claimed", flush=True)
    input()
"""


def test_two_runs_cannot_write_to_one_folder(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        with (
            pytest.raises(UserError, match="another run is writing to the folder"),
            lock_folder(tmp_path, "--output_dir", 0.1),
        ):
            pass
        other.kill()
    with lock_folder(tmp_path, "--output_dir", 5):  # the claim ended with the process
        pass
