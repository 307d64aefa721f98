"""What an engine has started ends with it, however it ends."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import subprocess, sys, time
from llava.engine.vllm_engine import end_with_this_process
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
guard = end_with_this_process([other.pid])
print("runs", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_started_ends_with_its_process(number):
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "runs\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
        # Of the pipe, which the other process has too.
        assert process.stdout.read() == ""
