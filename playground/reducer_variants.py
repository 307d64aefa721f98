"""Successors of TRIM that were tried, as methods for `llava compare`: `Cover`, its variants, and others.

``python -m playground.reducer_variants ...`` is ``llava compare ...`` with these among the methods. They are
not in the package, since none of them is surely better than TRIM at two budgets (docs/methods.md).

Shapes: N patches, k of which stay, D width of the tower.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.errors import UserError
from llava.main import main as llava_main
from llava.model.multimodal_encoder.reducers import registry
from llava.model.multimodal_encoder.reducers.base import (
    Budgeted,
    Choice,
    ImageInputs,
    Signal,
    cosine,
    member_sums,
    top,
)
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage
from llava.model.multimodal_encoder.reducers.relevance import question_relevance
from llava.model.multimodal_encoder.token_reduction import Ratio
from playground.cover import Cover, CoverSalient


def mean_one(weights: Tensor) -> Tensor:
    """Scale weights (N,) so that their mean is 1."""
    return weights / weights.mean().clamp(min=1e-12)


@dataclass(frozen=True, slots=True)
class Sharp(Cover):
    """Relevance as it is, not smoothed over neighbors."""

    name: ClassVar[str] = "Cover-sharp"

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh patches, (N,)."""
        return question_relevance(image.joint(), image.question())


@dataclass(frozen=True, slots=True)
class Uniform(Cover):
    """Coverage of all patches alike: the question is not read, but for the count of ``-1``."""

    name: ClassVar[str] = "Cover-uniform"

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh patches, (N,)."""
        return torch.ones(len(image.patches), device=image.patches.device)


@dataclass(frozen=True, slots=True)
class Squared(Cover):
    """Relevance squared, which counts less relevant patches for less."""

    name: ClassVar[str] = "Cover-squared"

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh patches, (N,)."""
        return Cover.worth(self, image).square()


@dataclass(frozen=True, slots=True)
class Eighth(Cover):
    """The eighth power of relevance: coverage of what is most relevant."""

    name: ClassVar[str] = "Cover-eighth"

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh patches, (N,)."""
        return Cover.worth(self, image).pow(8)


@dataclass(frozen=True, slots=True)
class AddSaliency(Cover):
    """Relevance and attention of CLS, each of mean 1, added."""

    name: ClassVar[str] = "Cover+CLS-added"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh patches, (N,)."""
        return mean_one(Cover.worth(self, image)) + mean_one(image.cls_attention())


@dataclass(frozen=True, slots=True)
class GateSaliency(Cover):
    """Relevance where its map has peaks, attention of CLS where it is flat, by the map's entropy."""

    name: ClassVar[str] = "Cover+CLS-gated"
    reads: ClassVar[frozenset[Signal]] = frozenset({Signal.CLS_ATTENTION})

    def worth(self, image: ImageInputs) -> Tensor:
        """Weigh patches, (N,)."""
        shares = image.relevance()
        entropy = -(shares * shares.clamp(min=1e-12).log()).sum() / math.log(len(shares))
        text, saliency = mean_one(Cover.worth(self, image)), mean_one(image.cls_attention())
        return (1 - entropy) * text + entropy * saliency


@dataclass(frozen=True, slots=True)
class Threshold(Cover):
    """``Cover-tau:t``: as many patches as cover a share t of what is to be covered, at least one."""

    name: ClassVar[str] = "Cover-tau"
    adaptive: ClassVar[bool] = False

    def check(self, patches: int) -> None:
        """Refuse numbers of patches: they are what `Cover` is set to."""
        if not isinstance(self.budget, Ratio):
            raise UserError(f"{self} is no threshold; accepted: {self.name}: and a share above 0 and up to 1")

    def choose(self, image: ImageInputs) -> Choice:
        """Reduce one image."""
        assert isinstance(self.budget, Ratio)
        patches = image.patches
        shown = ~image.in_padding()
        similarity = (cosine(patches) + 1) / 2
        weights = self.worth(image) * shown
        order = pick_coverage(similarity, len(patches) // 2, weights=weights, candidates=shown)
        covered = similarity[:, order].cummax(dim=1).values.mul(weights.unsqueeze(1)).sum(dim=0)
        enough = covered >= self.budget.share * weights.sum()
        count = int(enough.int().argmax()) + 1 if bool(enough.any()) else len(order)
        return self.reduce(image, count)


@dataclass(frozen=True, slots=True)
class Pure(Cover):
    """Without a merged token."""

    name: ClassVar[str] = "Cover-pure"

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the picked patches alone."""
        return Choice(Cover.reduce(self, image, count).kept)


@dataclass(frozen=True, slots=True)
class Repeated(Cover):
    """The merged token four times: equal keys count for the attention like one with log(4) added."""

    name: ClassVar[str] = "Cover-merged-x4"

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep patches, and the mean of the others four times."""
        return repeat_last(Cover.reduce(self, image, count), 4)


@dataclass(frozen=True, slots=True)
class Anchors(Cover):
    """An eighth of the budget as means of dropped patches around anchors, instead of one mean of all."""

    name: ClassVar[str] = "Cover-anchors"

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep patches, and the means of the groups behind them."""
        groups = max(1, count // 8)
        return with_means(image, Cover.reduce(self, image, count - groups + 1).kept, groups)


@dataclass(frozen=True, slots=True)
class TrimVariant(Budgeted):
    """The most relevant patches, with another merged token than TRIM's or another relevance."""

    name: ClassVar[str] = "TRIM-pure"
    paper: ClassVar[str] = "-"
    needs_question: ClassVar[bool] = True
    copies: ClassVar[int] = 0

    def scores(self, image: ImageInputs) -> Tensor:
        """Return what the most relevant patches have most of, (N,)."""
        return image.relevance()

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep the most relevant patches, and the mean of the others as often as ``copies`` says."""
        kept = top(self.scores(image), count)
        rest = image.patches[dropped(image, kept)]
        merged = rest.float().mean(dim=0, keepdim=True).to(image.patches.dtype)
        return Choice(kept, torch.cat([image.patches[kept], merged.expand(self.copies, -1)]))


@dataclass(frozen=True, slots=True)
class TrimRepeated(TrimVariant):
    """The merged token four times."""

    name: ClassVar[str] = "TRIM-merged-x4"
    copies: ClassVar[int] = 4


@dataclass(frozen=True, slots=True)
class TrimSmooth(TrimVariant):
    """Relevance smoothed over neighbors, as Cover's is, and one merged token."""

    name: ClassVar[str] = "TRIM-smooth"
    copies: ClassVar[int] = 1

    def scores(self, image: ImageInputs) -> Tensor:
        """Return smoothed relevance, (N,)."""
        return Cover(self.budget).worth(image)


@dataclass(frozen=True, slots=True)
class TrimAnchors(TrimVariant):
    """The most relevant patches, and an eighth of the budget as means of the others around anchors."""

    name: ClassVar[str] = "TRIM-anchors"

    def reduce(self, image: ImageInputs, count: int) -> Choice:
        """Keep patches, and the means of the groups behind them."""
        groups = max(1, count // 8)
        return with_means(image, top(self.scores(image), count - groups + 1), groups)


VARIANTS: tuple[type[Budgeted], ...] = (
    *(Cover, CoverSalient, Sharp, Uniform, Squared, Eighth, AddSaliency, GateSaliency, Threshold),
    *(Pure, Repeated, Anchors, TrimVariant, TrimRepeated, TrimSmooth, TrimAnchors),
)


def dropped(image: ImageInputs, kept: Tensor) -> Tensor:
    """Tell which patches are not among those kept, bool (N,)."""
    rest = torch.ones(len(image.patches), dtype=torch.bool, device=kept.device)
    rest[kept] = False
    return rest


def with_means(image: ImageInputs, kept: Tensor, groups: int) -> Choice:
    """Put behind the kept patches the means of the others, grouped around as many anchors."""
    rest = image.patches[dropped(image, kept)]
    similarity = cosine(rest)
    anchors = pick_coverage((similarity + 1) / 2, groups)
    sums, members = member_sums(rest, similarity[:, anchors].argmax(dim=1), groups)
    means = (sums / members.clamp(min=1).unsqueeze(1)).to(image.patches.dtype)
    return Choice(kept, torch.cat([image.patches[kept], means]))


def repeat_last(choice: Choice, times: int) -> Choice:
    """Repeat the last token of a choice."""
    assert choice.tokens is not None
    return Choice(choice.kept, torch.cat([choice.tokens, choice.tokens[-1:].expand(times - 1, -1)]))


def register() -> None:
    """Let settings name the variants."""
    for variant in VARIANTS:
        registry.REDUCERS[variant.name] = variant


def main(argv: Sequence[str] | None = None) -> int:
    """Compare, with the variants among the methods."""
    register()
    return llava_main(["compare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
