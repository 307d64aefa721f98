"""The reducers: which patches of an image the language model gets to read.

TRIM (arXiv:2409.10994), in the order of its paper: the similarity of every patch to the question
(`patch_scores`, `patch_relevance`), the interquartile rule that decides how many stay (`keep_outliers`), and
the mean of the others as one more token (`merge_dropped`). Nothing here knows CLIP: `clip_encoder.py`
supplies patches, questions and the projection into their joint space.

Shapes: B images, N patches per image, D tower width, E joint CLIP width, n_i visual tokens of image i.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from llava.model.multimodal_encoder.reducers.base import ImageInputs


@dataclass(frozen=True, slots=True)
class VisualTokens:
    """Visual tokens of a batch of images, packed back to back because images may differ in length.

    Attributes:
        packed: Tokens of image 0, then of image 1, and so on; shape (sum(counts), D).
        counts: Tokens per image, n_i.
        kept: Which patches stayed as tokens of their own, bool (B, N), on the host: whoever looks at it there
            makes no device wait.
        projected: The tokens behind the projector, (sum(counts), D'), where choosing them took that.
    """

    packed: Tensor
    counts: tuple[int, ...]
    kept: Tensor
    projected: Tensor | None = None

    def split(self) -> tuple[Tensor, ...]:
        """Return one (n_i, D) view per image."""
        return self.packed.split(self.counts)

    def stacked(self) -> Tensor | list[Tensor]:
        """Return (B, n, D) where all images have n tokens, otherwise one (n_i, D) per image."""
        return torch.stack(self.split()) if len(set(self.counts)) == 1 else list(self.split())

    def split_images(self, crops: Sequence[int]) -> list[VisualTokens]:
        """Return the visual tokens of each image, where the batch held several crops of each.

        Args:
            crops: Their number per image.
        """
        images, first, start = [], 0, 0
        for count in crops:
            counts = self.counts[first : first + count]
            end = start + sum(counts)
            projected = None if self.projected is None else self.projected[start:end]
            images.append(
                VisualTokens(self.packed[start:end], counts, self.kept[first : first + count], projected)
            )
            first, start = first + count, end
        return images


def patch_scores(patches: Tensor, questions: Tensor, projection: Tensor) -> Tensor:
    """Dot products of projected patches with projected questions: no cosine, no logit scale.

    Projecting a patch and multiplying it with the question is the same as multiplying it with the question
    projected *back* to the tower's width, which takes N * D instead of N * D * E products. Rows are summed
    one by one, and no matrix product runs over the batch, so that rounding does not depend on an image's
    neighbors.

    Args:
        patches: Patches behind CLIP's ``post_layernorm``, float32 (B, N, D).
        questions: Pooled, projected questions, not normalized, float32 (B, E).
        projection: Weight of CLIP's ``visual_projection``, float32 (E, D).

    Returns:
        Scores, (B, N).
    """
    directions = torch.stack([question @ projection for question in questions])  # (B, D)
    return (patches * directions.unsqueeze(1)).sum(dim=-1)


def patch_relevance(scores: Tensor) -> Tensor:
    """Turn patch-question dot products into a distribution over the patches of each image.

    Relevance *falls* with the dot product: patches of a contrastively trained ViT tend to oppose the text
    they depict (arXiv:2304.05653), and the released TRIM checkpoints learned this sign.

    Args:
        scores: From `patch_scores`, (B, N).

    Returns:
        Probabilities in float32, (B, N).
    """
    return scores.float().neg().softmax(dim=-1)


def keep_outliers(relevance: Tensor, iqr_factor: float = 1.5) -> Tensor:
    """Mark the patches above Q3 + 1.5 IQR of their own image: (B, N) -> bool (B, N).

    The quartiles are those of one image, never of the batch, so an answer does not depend on its neighbors.
    Where no patch is an outlier, the most relevant one stays.
    """
    relevance = relevance.float()
    # A range, because numbers made on the host would have to wait for the device on their way there.
    low, high = relevance.quantile(torch.linspace(0.25, 0.75, 2, device=relevance.device), dim=-1)
    outliers = relevance > (high + iqr_factor * (high - low)).unsqueeze(-1)
    return outliers | (keep_top(relevance, 1) & ~outliers.any(dim=-1, keepdim=True))


def keep_top(relevance: Tensor, count: int) -> Tensor:
    """Mark each image's ``count`` most relevant patches, the earlier on a tie: (B, N) -> bool (B, N)."""
    top = relevance.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(relevance, dtype=torch.bool).scatter(-1, top, True)


def order_and_merge(patches: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Put the kept patches of each image first, and average the others; the host learns nothing.

    Sums are of pairs of patches, of pairs of pairs and so on, so that their rounding does not depend on an
    image's neighbors, and in float32: in half precision a mean of hundreds would lose its last bits.

    Args:
        patches: Patch features of the tower, (B, N, D).
        keep: Which patches stay, bool (B, N).

    Returns:
        The patches (B, N, D), those kept in raster order and then the others; the mean of the others, (B, D)
        in the dtype of ``patches``, of no meaning where every patch is kept.
    """
    order = keep.int().argsort(dim=1, descending=True, stable=True)
    ordered = patches.gather(1, order.unsqueeze(-1).expand_as(patches))
    sums = patches.masked_fill(keep.unsqueeze(-1), 0).float()
    while (count := sums.shape[1]) > 1:
        half = count // 2
        pairs = sums[:, :half] + sums[:, half : 2 * half]
        sums = torch.cat([pairs, sums[:, -1:]], dim=1) if count % 2 else pairs
    dropped = (~keep).sum(dim=1, keepdim=True).clamp(min=1)
    return ordered, (sums[:, 0] / dropped).to(patches.dtype)


def pack_tokens(ordered: Tensor, merged: Tensor, keep: Tensor) -> VisualTokens:
    """Per image: the kept patches in raster order, then the mean of the dropped ones as one token.

    The host waits for the device once, for what is kept, which says how many tokens each image has.

    Args:
        ordered: See `order_and_merge`, (B, N, D).
        merged: See there, (B, D).
        keep: See there, (B, N).

    Returns:
        n_i tokens per image: the patches kept, plus one unless every patch is kept.
    """
    kept = keep.cpu()
    stays = kept.sum(dim=1).tolist()
    merges = [int(count < keep.shape[1]) for count in stays]
    parts = [
        part
        for image, mean, count, merge in zip(ordered, merged.unsqueeze(1), stays, merges, strict=True)
        for part in (image[:count], mean[:merge])
    ]
    return VisualTokens(torch.cat(parts), tuple(map(sum, zip(stays, merges, strict=True))), kept)


def merge_dropped(patches: Tensor, keep: Tensor) -> VisualTokens:
    """Return the kept patches of (B, N, D), and the mean of the others; see `pack_tokens`."""
    return pack_tokens(*order_and_merge(patches, keep), keep)


@dataclass(frozen=True, slots=True)
class ReducerInputs:
    """What a reducer may look at.

    Attributes:
        patches: Patch features of the tower, (B, N, D).
        pixels: What the tower saw, (B, 3, height, width).
        relevance: Computes the relevance of each patch to the question, float32 (B, N), or raises `UserError`
            if no question was given; called only by reducers that ask for it.
        images: The same image by image, with all that published methods look at.
    """

    patches: Tensor
    pixels: Tensor
    relevance: Callable[[], Tensor]
    images: Sequence[ImageInputs] = ()


class Budget(Protocol):
    """How many patches stay."""

    needs_relevance: ClassVar[bool]
    """Whether the number depends on the relevance of the patches."""

    def mask(self, relevance: Tensor) -> Tensor:
        """Mark the patches that stay, by relevance: float32 (B, N) -> bool (B, N)."""

    def counts(self, inputs: ReducerInputs) -> list[int]:
        """Return how many patches of each image stay."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """``-1``: each image decides by the interquartile rule of arXiv:2409.10994."""

    needs_relevance: ClassVar[bool] = True

    def __str__(self) -> str:
        """Write the setting as `parse_budget` reads it."""
        return "-1"

    def mask(self, relevance: Tensor) -> Tensor:
        """Mark the outliers of each image: (B, N) -> bool (B, N)."""
        return keep_outliers(relevance)

    def counts(self, inputs: ReducerInputs) -> list[int]:
        """Count the outliers of each image."""
        return keep_outliers(inputs.relevance()).sum(dim=-1).tolist()


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A number that is known before an image is seen."""

    needs_relevance: ClassVar[bool] = False

    def of(self, patches: int) -> int:
        """Return how many of N patches stay, at least 1."""
        raise NotImplementedError

    def mask(self, relevance: Tensor) -> Tensor:
        """Mark the most relevant patches of each image: (B, N) -> bool (B, N)."""
        return keep_top(relevance, self.of(relevance.shape[-1]))

    def counts(self, inputs: ReducerInputs) -> list[int]:
        """Return the same number for each image."""
        return [self.of(inputs.patches.shape[1])] * len(inputs.patches)


@dataclass(frozen=True, slots=True)
class Ratio(_Fixed):
    """``r``: a share of the patches.

    Attributes:
        share: Above 0, up to 1.
    """

    share: float

    def __str__(self) -> str:
        """Write the setting as `parse_budget` reads it."""
        return "1" if self.share == 1 else repr(self.share)

    def of(self, patches: int) -> int:
        """Return ``int(N * share)`` of N patches, at least 1."""
        return max(1, int(patches * self.share))


@dataclass(frozen=True, slots=True)
class Count(_Fixed):
    """``k``: a number of patches.

    Attributes:
        number: Above 1; one above N keeps all.
    """

    number: int

    def __str__(self) -> str:
        """Write the setting as `parse_budget` reads it."""
        return str(self.number)

    def of(self, patches: int) -> int:
        """Return the number, at most N patches."""
        return min(patches, self.number)


def parse_budget(value: str) -> Budget:
    """Read the part after ``TRIM:`` or ``Random:``.

    Raises:
        ValueError: If ``value`` is neither -1, a ratio in (0, 1] nor a whole number of patches.
    """
    number = float(value)
    if number == -1:
        return Adaptive()
    if 0 < number <= 1:
        return Ratio(number)
    if number > 1 and number.is_integer():
        return Count(int(number))
    raise ValueError(value)


class Reducer(Protocol):
    """A setting of ``mm_vision_token_reduce_func``, which is also the function that carries it out."""

    @property
    def needs_question(self) -> bool:
        """Whether the tower must hold CLIP's text encoder, to read the question."""

    @classmethod
    def parse(cls, value: str) -> Reducer:
        """Read the part after the reducer's name and colon; raises ValueError if it makes no sense."""

    def __call__(self, inputs: ReducerInputs) -> VisualTokens:
        """Reduce (B, N, D) patches to n_i tokens per image, each image by itself."""


@dataclass(frozen=True, slots=True)
class NoReduction:
    """``none``: every patch is a token."""

    needs_question: ClassVar[bool] = False

    @classmethod
    def parse(cls, value: str) -> NoReduction:
        """Accept nothing: ``none`` has no argument."""
        raise ValueError(value)

    def __str__(self) -> str:
        """Write the setting as `parse_reduction` reads it."""
        return "none"

    def __call__(self, inputs: ReducerInputs) -> VisualTokens:
        """Return the (B, N, D) patches unchanged, N tokens per image."""
        batch, patches, _ = inputs.patches.shape
        everything = torch.ones(batch, patches, dtype=torch.bool)
        return VisualTokens(inputs.patches.flatten(0, 1), (patches,) * batch, everything)


@dataclass(frozen=True, slots=True)
class Trim:
    """``TRIM:<budget>``: keep the patches most relevant to the question, merge the others into one token."""

    budget: Budget
    needs_question: ClassVar[bool] = True

    @classmethod
    def parse(cls, value: str) -> Trim:
        """Read the part after ``TRIM:``; raises ValueError if it is not a budget."""
        return cls(parse_budget(value))

    def __str__(self) -> str:
        """Write the setting as `parse_reduction` reads it."""
        return f"TRIM:{self.budget}"

    def __call__(self, inputs: ReducerInputs) -> VisualTokens:
        """Reduce (B, N, D) patches to the kept ones and the mean of the rest."""
        keep = self.budget.mask(inputs.relevance())
        return merge_dropped(inputs.patches, keep)


@dataclass(frozen=True, slots=True)
class Random:
    """``Random:<budget>``: a baseline for TRIM, as many patches but random ones, and the merged token."""

    budget: Budget

    @classmethod
    def parse(cls, value: str) -> Random:
        """Read the part after ``Random:``; raises ValueError if it is not a budget."""
        return cls(parse_budget(value))

    @property
    def needs_question(self) -> bool:
        """Only ``Random:-1`` does, to keep as many patches as TRIM would."""
        return self.budget.needs_relevance

    def __str__(self) -> str:
        """Write the setting as `parse_reduction` reads it."""
        return f"Random:{self.budget}"

    def __call__(self, inputs: ReducerInputs) -> VisualTokens:
        """Reduce (B, N, D) patches to a choice seeded by each image's pixels, and the mean of the rest."""
        patches = inputs.patches.shape[1]
        keep = [
            keep_top(_random_ranking(pixels, patches), count)
            for pixels, count in zip(inputs.pixels, self.budget.counts(inputs), strict=True)
        ]
        return merge_dropped(inputs.patches, torch.stack(keep).to(inputs.patches.device))


def _random_ranking(pixels: Tensor, patches: int) -> Tensor:
    """Draw one number per patch, (patches,), the same for the same pixels (3, height, width)."""
    seed = zlib.crc32(pixels.detach().float().cpu().contiguous().numpy().tobytes())
    return torch.rand(patches, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True, slots=True)
class Pool:
    """``Pool:<cells>``: averages over the nearest square grid of at most that many cells, question or not.

    Attributes:
        cells: The most tokens an image may cost.
    """

    cells: int
    needs_question: ClassVar[bool] = False

    @classmethod
    def parse(cls, value: str) -> Pool:
        """Read the part after ``Pool:``; raises ValueError unless it is a whole number above 0."""
        cells = float(value)
        if not (cells >= 1 and cells.is_integer()):
            raise ValueError(value)
        return cls(int(cells))

    def __str__(self) -> str:
        """Write the setting as `parse_reduction` reads it."""
        return f"Pool:{self.cells}"

    def __call__(self, inputs: ReducerInputs) -> VisualTokens:
        """Reduce (B, N, D) patches to the cells of a square grid; a CLS token in front of them stays."""
        patches = inputs.patches
        side = math.isqrt(patches.shape[1])
        leading = patches.shape[1] - side * side
        grid = min(side, math.isqrt(self.cells))
        image = patches[:, leading:].transpose(1, 2).unflatten(-1, (side, side))  # (B, D, side, side)
        # Contiguous, because the kernel sums in another order for the layout that a batch of several has.
        cells = F.adaptive_avg_pool2d(image.float().contiguous(), grid).to(patches.dtype)
        tokens = torch.cat([patches[:, :leading], cells.flatten(2).transpose(1, 2)], dim=1)
        kept = torch.zeros(patches.shape[:2], dtype=torch.bool)
        kept[:, :leading] = True
        return VisualTokens(tokens.flatten(0, 1), (tokens.shape[1],) * len(tokens), kept)
