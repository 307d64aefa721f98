"""What only a GPU can show; without one these tests are not among those that run."""

import pytest
import torch

from llava.bench.gpu_check import agreement, selection
from llava.bench.gpu_check.sizes import TINY
from llava.bench.gpu_check.synchronisations import count_synchronisations
from llava.bench.gpu_check.worker import use_float32

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def cases():
    use_float32()
    return agreement.compare_cases(CUDA, "float32")


@pytest.mark.parametrize("case", range(20))
def test_a_reference_case_agrees_in_float32(case, cases):
    found = cases[case]
    assert found.kept and found.counts and found.ids
    assert found.logits < 1e-3


@pytest.mark.parametrize("reduction", selection.REDUCTIONS)
def test_the_host_waits_once_from_pixels_to_prompts(reduction):
    assistant = selection.selection_assistant(CUDA, TINY)
    lines = count_synchronisations(CUDA, selection.chain(assistant, reduction))
    assert lines is not None and len(lines) == 1, lines


def test_a_synchronisation_is_counted_with_its_line():
    numbers = torch.ones(3, device=CUDA)
    (line,) = count_synchronisations(CUDA, lambda: numbers.sum().item()) or [""]
    assert line.startswith("tests/bench/test_gpu.py:")
