"""Functions of tensors as CUDA graphs: what takes longer to start from Python than to compute.

A 7B model's step is 1,500 kernels. Started one by one from Python they take 19 ms on an H200, all at once
as a graph 7 (``docs/gpu.md``). The kernels are the same ones, and so are the results.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from llava.model.placement import hand_over

logger = logging.getLogger(__name__)

Function = Callable[..., Any]
"""Takes tensors and gives a tensor, or a tuple of them; asks the device for nothing."""
RECORDINGS_KEPT = 64  # of one function, for as many shapes


class Recorder(Protocol):
    """Makes a function of tensors repeatable.

    Attributes:
        device: Where the inputs are to be.
        lock: Held while anything of this recorder is recorded, or replayed and not yet copied.
    """

    device: torch.device
    lock: threading.RLock

    def record(self, function: Function, inputs: Sequence[Tensor]) -> Callable[[], Any]:
        """Return what computes the function anew from inputs that stay where they are.

        Args:
            function: What to record; may be called several times.
            inputs: Its arguments, of any shape (...), whose values may be changed in place between two calls.

        Returns:
            Gives the function's result in memory that the next call overwrites.

        Raises:
            RuntimeError: If it cannot be recorded.
        """


class CudaGraphs:
    """Records CUDA graphs, whose intermediate results share memory: one of them may run at a time.

    Args:
        device: Where all of them run.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.lock = threading.RLock()
        self._stream = torch.cuda.Stream(device)
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def record(self, function: Function, inputs: Sequence[Tensor]) -> Callable[[], Any]:
        """Record a CUDA graph for inputs of any shape (...); see `Recorder.record`."""
        if not self._graphs:
            self._pool = torch.cuda.graph_pool_handle()  # one that all graphs have left is of no use
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                function(*inputs)  # what libraries do at their first call cannot be recorded
                # Other threads may use the device meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    results = function(*inputs)
                finally:
                    graph.capture_end()
            torch.cuda.current_stream().wait_stream(self._stream)
        self._graphs.add(graph)

        def replay() -> Any:
            graph.replay()
            return results

        return replay


class Recordings:
    """The recordings of one function, one for each shape of its arguments; several threads may call it.

    Args:
        recorder: Makes them.
        function: See `Recorder.record`; keyword arguments of it are no tensors and part of the shape.
        limit: How many are kept, those that were used last.
    """

    def __init__(self, recorder: Recorder, function: Function, limit: int = RECORDINGS_KEPT) -> None:
        self._recorder = recorder
        self._function = function
        self._limit = limit
        self._lock = recorder.lock
        self._known: OrderedDict[Hashable, tuple[list[Tensor], Callable[[], Any]]] = OrderedDict()
        self._fails = False

    def __call__(self, *arguments: Tensor, **settings: Hashable) -> Any:
        """Return the function's result for these arguments, in memory of its own."""
        with self._lock:
            found = self.replay(*arguments, **settings)
            return tuple(one.clone() for one in found) if isinstance(found, tuple) else found.clone()

    def replay(self, *arguments: Tensor, **settings: Hashable) -> Any:
        """Return the function's result for these arguments, which the next call overwrites."""
        with self._lock:
            if self._fails:
                return self._run_once(arguments, settings)
            key = (*((one.shape, one.dtype) for one in arguments), *sorted(settings.items()))
            if key not in self._known:
                try:
                    self._known[key] = self._record(arguments, settings)
                except RuntimeError as error:
                    logger.warning("CUDA graphs do not serve here: %s", str(error).partition("\n")[0])
                    self._fails = True
                    return self._run_once(arguments, settings)
                if len(self._known) > self._limit:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            inputs, run = self._known[key]
            for own, given in zip(inputs, arguments, strict=True):
                own.copy_(given, non_blocking=given.device.type == "cpu")
            return run()

    def _run_once(self, arguments: Sequence[Tensor], settings: Mapping[str, Hashable]) -> Any:
        return self._function(*(hand_over(one, self._recorder.device) for one in arguments), **settings)

    def forget(self) -> None:
        """Let go of all recordings, because what they compute with is somewhere else now."""
        with self._lock:
            self._known.clear()
            self._fails = False

    def _record(
        self, arguments: Sequence[Tensor], settings: Mapping[str, Hashable]
    ) -> tuple[list[Tensor], Callable[[], Any]]:
        # Also what an inference gives to a training later: its tensors are no different from others.
        with torch.inference_mode(False), torch.no_grad():
            inputs = [torch.empty_like(one, device=self._recorder.device).copy_(one) for one in arguments]
            return inputs, self._recorder.record(partial(self._function, **settings), inputs)
