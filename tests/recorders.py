"""A recorder for machines without CUDA: what is replayed is called again, on inputs and outputs that stay."""

import threading

import torch


class CallsAgain:
    """Treats inputs and outputs as a CUDA graph does.

    Attributes:
        device: Of the inputs.
        recorded: How often something was recorded.
        replayed: How often something was replayed.
    """

    def __init__(self, device="cpu"):
        self.device = torch.device(device)
        self.lock = threading.RLock()
        self.recorded = self.replayed = 0

    def record(self, function, inputs):
        """Return what calls the function again and leaves the result where the first one was."""
        self.recorded += 1
        results = function(*inputs)
        kept = results if isinstance(results, tuple) else (results,)

        def replay():
            self.replayed += 1
            found = function(*inputs)
            for own, new in zip(kept, found if isinstance(found, tuple) else (found,), strict=True):
                own.copy_(new)
            return results

        return replay
