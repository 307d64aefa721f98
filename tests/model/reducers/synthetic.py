"""One image of random numbers, for what the authors' cases do not hold: ties, half precision, other sizes."""

import torch


class RandomImage:
    """An `ImageInputs` of ``side * side`` patches whose members can be replaced."""

    def __init__(self, side=6, width=16, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        patches = side * side

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        def attention():
            return normal(patches).mul(2).softmax(dim=0) * 0.9

        self.patches = normal(patches, width).to(dtype)
        self._cls = normal(width).to(dtype)
        self._attention, self._middle, self._selected, self._next = (attention() for _ in range(4))
        self._keys, self._next_keys = normal(patches, 4), normal(patches, width).to(dtype)

    def replace(self, **members):
        """Set ``attention``, ``keys``, ``patches`` and so on, and return the image."""
        for name, value in members.items():
            setattr(self, name if name == "patches" else f"_{name}", value)
        return self

    def cls(self):
        return self._cls

    def cls_attention(self):
        return self._attention

    def keys(self):
        return self._keys

    def received_attention(self):
        return self._middle, self._selected

    def next_layer(self):
        return self._next, self._next_keys
