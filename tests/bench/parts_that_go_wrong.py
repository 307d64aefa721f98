"""Parts of the GPU check that end in every way but well."""

import os
import signal

import torch

from llava.bench.gpu_check.parts import SkippedError, UnmetError


def finds(device, size):
    yield {"device": str(device), "pictures": size.pictures}
    yield {"second": True}


def fails(device, size):
    yield {"found": 1}
    raise KeyError("what is missing")


def lacks(device, size):
    raise SkippedError("peft is not installed")
    yield


def is_too_large(device, size):
    raise torch.OutOfMemoryError("tried to allocate too much")
    yield


def disagrees(device, size):
    yield {"found": 1}
    raise UnmetError("3 of the cases differ")


def dies(device, size):
    yield {"found": 1}
    os.kill(os.getpid(), signal.SIGKILL)
