"""What a launcher has set is taken, and what makes no sense is one sentence."""

import subprocess
import sys

import pytest
import torch

from llava.errors import UserError
from llava.eval.processes import Processes, launched_processes


def test_alone_there_is_nobody_to_meet(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with launched_processes() as processes:
        assert (processes.rank, processes.count, processes.is_first) == (0, 1, True)
        with pytest.raises(UserError, match="nothing"), processes.together():
            raise UserError("nothing")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'; accepted: a whole number, which a launcher sets"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1'; accepted"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "process 0 of 2 does not reach the others.*MASTER_ADDR"),
    ],
)
def test_what_no_launcher_sets_is_one_sentence(settings, message, monkeypatch):
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message), launched_processes():
        pass


@pytest.mark.parametrize(
    ("here", "on_the_cpu", "on_a_gpu"), [(None, 12, 3), ("6", 6, 2), ("4", 4, 1), ("0", 1, 1)]
)
def test_a_device_is_shared_by_processes_of_its_machine(here, on_the_cpu, on_a_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    assert Processes(0, 12).sharing(torch.device("cpu")) == on_the_cpu
    assert Processes(0, 12).sharing(torch.device("cuda:1")) == on_a_gpu


SCRIPT = """
import sys
from llava.errors import UserError
from llava.eval.processes import launched_processes
from llava.utils import exit_on_user_error

@exit_on_user_error
def main():
    with launched_processes() as processes:
        with processes.together():
            print("first", flush=True)
        with processes.together():
            if processes.rank == 1:
                raise UserError("the second one cannot")
        print("went on", flush=True)

sys.exit(main())
"""


@pytest.mark.slow
def test_of_two_processes_one_that_fails_ends_both_with_its_sentence(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # Neither waits for the other, which would take longer than this.
    done = subprocess.run([*launcher, str(path)], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stdout.count("first") == 2 and "went on" not in done.stdout
    assert "error: the second one cannot" in done.stderr
