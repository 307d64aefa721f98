"""What methods share that only choose patches: a number of them, and every patch where that is all.

Shapes: N patches, k of which stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from llava.model.multimodal_encoder.reducers.base import Choice, ImageInputs, Method, everything
from llava.model.multimodal_encoder.token_reduction import Count, Ratio, parse_budget

Own = TypeVar("Own", bound="Selection")


@dataclass(frozen=True, slots=True)
class Selection(Method):
    """``Name:k`` or ``Name:r``: a method whose tokens are k of the patches.

    Attributes:
        budget: How many patches stay.
    """

    budget: Count | Ratio

    @classmethod
    def parse(cls: type[Own], value: str) -> Own:
        """Read the part after ``Name:``.

        Raises:
            ValueError: If ``value`` is neither a ratio in (0, 1] nor a whole number of patches.
        """
        try:
            budget = parse_budget(value)
        except ValueError:
            budget = None
        if not isinstance(budget, Count | Ratio):
            raise ValueError(
                f"{cls.__name__} keeps a whole number k > 1 of patches or a share 0 < r <= 1 of them, "
                f"not {value!r}"
            )
        return cls(budget)

    def __str__(self) -> str:
        """Write the setting as ``Name:value``."""
        return f"{type(self).__name__}:{self.budget}"

    def choose(self, image: ImageInputs) -> Choice:
        """Keep k patches of an image, or everything where it has no more."""
        patches = len(image.patches)
        count = self.budget.of(patches)
        return everything(image) if count >= patches else Choice(self.pick(image, count).sort().values)

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return ``count`` of the N patches in any order, int64 (k,); ``count`` is below N."""
        raise NotImplementedError
