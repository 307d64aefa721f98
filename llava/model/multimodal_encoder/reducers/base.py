"""What a method may look at of one image, and what it gives back.

Shapes: N patches, D width of the tower, h width of one of its heads, E width of CLIP's joint space, D' width
of the language model, M pieces of a question, of which `llava` reads the first alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from llava.errors import shown
from llava.model.multimodal_encoder.token_reduction import (
    Adaptive,
    Count,
    Ratio,
    ReducerInputs,
    VisualTokens,
    order_and_merge,
    parse_budget,
)


class Signal(Enum):
    """What the vision encoder gives up beside its patches, only when a method that reads it is in force.

    "The selected layer" is the one whose output the patches are.
    """

    CLS = "the hidden state of CLS"
    CLS_ATTENTION = "attention of CLS in the selected layer"
    KEYS = "keys of the selected layer"
    RECEIVED_ATTENTION = "attention that patches receive in the ninth and the selected layer"


class ImageInputs(Protocol):
    """One image, and what is known of the question about it; all is computed when it is first asked for.

    Scores are float32 whatever the tower's dtype, hidden states are in the tower's. What belongs to the
    question or to the language model raises `UserError` where there is none.
    """

    @property
    def patches(self) -> Tensor:
        """Hidden states of the patches, (N, D), in raster order, in the tower's dtype."""

    def cls(self) -> Tensor:
        """Hidden state of CLS, (D,), in the tower's dtype; `Signal.CLS`."""

    def cls_attention(self) -> Tensor:
        """Attention of CLS to each patch in the selected layer, mean over heads, (N,).

        The softmax was over CLS too, so they do not sum to 1; `Signal.CLS_ATTENTION`.
        """

    def keys(self) -> Tensor:
        """Keys of the patches in the selected layer, averaged over heads, (N, h); `Signal.KEYS`."""

    def received_attention(self) -> tuple[Tensor, Tensor]:
        """Attention that each patch receives, mean over heads and queries, CLS among these, (N,) twice.

        In the ninth layer and in the selected one; `Signal.RECEIVED_ATTENTION`.
        """

    def next_layer(self) -> tuple[Tensor, Tensor]:
        """Attention (N,) of CLS, as one head, and keys (N, D) of the layer that reads the patches."""

    def projected(self) -> Tensor:
        """Return the patches behind the projector, (N, D')."""

    def joint(self) -> Tensor:
        """Return the patches in CLIP's joint space, (N, E), not normalized."""

    def relevance(self) -> Tensor:
        """Return TRIM's relevance to the question, (N,)."""

    def question(self) -> Tensor:
        """Return the pooled, projected pieces of the question, (M, E), not normalized."""

    def question_states(self) -> Tensor:
        """Return projected states of the question at all 77 positions of CLIP's context, (M, 77, E).

        The question is padded with id 0 behind its end, which no position attends to.
        """

    def words(self) -> Tensor:
        """Return the language model's embeddings of the question's content words, (m, D')."""

    def in_padding(self) -> Tensor:
        """Tell which patches lie wholly in what makes the image square, bool (N,)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is left of an image.

    Attributes:
        kept: Patches that are tokens of their own, ascending, int64 (k,).
        tokens: The visual tokens (n, D) in their order; None if they are the kept patches in raster order.
    """

    kept: Tensor
    tokens: Tensor | None = None


class Method:
    """A published method with its setting, which looks at one image at a time: a `Reducer`.

    Attributes:
        name: What stands before the colon.
        paper: Where it is described.
        reads: What it needs of the vision encoder beside the patches.
        needs_patches: Whether it looks at patches as the tower gives them, and does not only keep them.
        needs_question: Whether CLIP's text encoder has to read the question.
        needs_words: Whether the language model's embeddings of the question's words are needed.
        needs_projected: Whether it judges patches behind the projector.
        needs_next_layer: Whether it reads the layer behind the selected one.
        needs_padding: Whether it asks which patches are padding.
    """

    __slots__ = ()
    name: ClassVar[str]
    paper: ClassVar[str]
    reads: ClassVar[frozenset[Signal]] = frozenset()
    needs_patches: ClassVar[bool] = False
    needs_question: ClassVar[bool] = False
    needs_words: ClassVar[bool] = False
    needs_projected: ClassVar[bool] = False
    needs_next_layer: ClassVar[bool] = False
    needs_padding: ClassVar[bool] = False

    @classmethod
    def parse(cls, value: str) -> Method:
        """Read the part after the method's name and colon; raises ValueError if it makes no sense."""
        raise NotImplementedError

    def check(self, patches: int) -> None:
        """Refuse images of so many patches, if the setting cannot be met.

        Raises:
            UserError: If it cannot.
        """

    def choose(self, image: ImageInputs) -> Choice:
        """Reduce one image; where the budget is N or more, `everything` stays."""
        raise NotImplementedError

    def __call__(self, inputs: ReducerInputs) -> VisualTokens:
        """Reduce (B, N, D) patches image by image."""
        kept = torch.zeros(inputs.patches.shape[:2], dtype=torch.bool)
        tokens, projected = [], []
        choices = [self.choose(image) for image in inputs.images]
        # Of all tokens or of none; those that a method makes of patches have not been projected.
        is_projected = self.needs_projected and all(choice.tokens is None for choice in choices)
        for row, (image, choice) in enumerate(zip(inputs.images, choices, strict=True)):
            kept[row, choice.kept.cpu()] = True
            tokens.append(image.patches[choice.kept] if choice.tokens is None else choice.tokens)
            if is_projected:
                projected.append(image.projected()[choice.kept])
        return VisualTokens(
            torch.cat(tokens).to(inputs.patches.dtype),
            tuple(map(len, tokens)),
            kept,
            torch.cat(projected) if projected else None,
        )


@dataclass(frozen=True, slots=True)
class Budgeted(Method):
    """A method that is set as ``Name:value``, where the value says how much of an image stays.

    Attributes:
        adaptive: Whether -1 leaves the number to a rule of the method's own.
        adds_rest: Whether a token that stands for the rest comes on top of the number.
        budget: A number of visual tokens (of patches where there is such a token), or a share of the patches.
    """

    budget: Count | Ratio | Adaptive
    adaptive: ClassVar[bool] = False
    adds_rest: ClassVar[bool] = False

    @classmethod
    def parse(cls, value: str) -> Budgeted:
        """Read what stands behind the colon.

        Raises:
            ValueError: If the method cannot be set so; the message says what it accepts.
        """
        try:
            budget = parse_budget(value)
        except ValueError:
            reason = ""
        else:
            if isinstance(budget, Count | Ratio) or (cls.adaptive and isinstance(budget, Adaptive)):
                return cls(budget)
            reason = ", because it has no rule of its own for how many tokens an image needs"
        counted = "patches beside a token for the rest" if cls.adds_rest else "visual tokens"
        own_rule = ", or -1 for its own rule" if cls.adaptive else ""
        raise ValueError(
            f"{cls.name} takes a whole number of {counted}, or a share of the patches above 0 and up to 1"
            f"{own_rule}, but not {shown(value)}{reason}"
        )

    def __str__(self) -> str:
        return f"{self.name}:{self.budget}"

    def choose(self, image: ImageInputs) -> Choice:
        """Reduce one image to what the budget says, or keep all of it where that is N or more."""
        patches = len(image.patches)
        count = self.own_count(image) if isinstance(self.budget, Adaptive) else self.count(patches)
        return everything(image) if count >= patches else self.reduce(image, count)

    def count(self, patches: int) -> int:
        """Return the number of N patches that a budget without a rule of its own means."""
        assert not isinstance(self.budget, Adaptive)
        return self.budget.of(patches)

    def own_count(self, image: ImageInputs) -> int:
        """Return the number that the method's own rule gives, if it has one."""
        raise NotImplementedError

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Reduce one image to the number that its budget gives, which is below N."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Selection(Budgeted):
    """A method whose tokens are k of the patches, in raster order."""

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the picked patches."""
        return Choice(self.pick(image, count).sort().values)

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return ``count`` of the N patches in any order, int64 (k,); ``count`` is below N."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class SelectionWithRest(Selection):
    """A method whose tokens are k of the patches, in raster order, and the mean of the others, as of TRIM."""

    adds_rest: ClassVar[bool] = True

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the picked patches and merge the others."""
        picked = self.pick(image, count)
        keep = torch.zeros(1, len(image.patches), dtype=torch.bool, device=picked.device)
        keep[0, picked] = True
        ordered, merged = order_and_merge(image.patches[None], keep)
        return Choice(picked.sort().values, torch.cat([ordered[0, :count], merged]))


def everything(image: ImageInputs) -> Choice:
    """Keep all patches, without any further token."""
    return Choice(torch.arange(len(image.patches), device=image.patches.device))


def top(scores: Tensor, count: int) -> Tensor:
    """Return the ``count`` highest of scores (N,), the earlier first on a tie: indices, ascending."""
    order = scores.argsort(descending=True, stable=True)
    return order[:count].sort().values


def cosine(left: Tensor, right: Tensor | None = None) -> Tensor:
    """Return cosine similarities of rows (n, d) and (m, d), or of rows among themselves, float32 (n, m)."""
    left = torch.nn.functional.normalize(left.float(), dim=-1)
    right = left if right is None else torch.nn.functional.normalize(right.float(), dim=-1)
    return left @ right.T


def member_sums(values: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add up what belongs together.

    As a matrix product, because adding in place would do so in any order on a GPU.

    Args:
        values: (n, d).
        groups: The group of each row, int64 (n,), below ``count``.
        count: Number of groups, g.

    Returns:
        Sums, float32 (g, d); members of each group, float32 (g,).
    """
    belongs = torch.nn.functional.one_hot(groups, count).T.float()
    return belongs @ values.float(), belongs.sum(dim=1)
