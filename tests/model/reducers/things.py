"""An image of a few things that a question is about to different degrees."""

import torch

from llava.model.multimodal_encoder.token_reduction import patch_relevance

WIDTH = 16


class ThingsImage:
    """A map of patches that belong to a few things, with a relevance for each thing."""

    def __init__(self, things, relevance, side=6):
        generator = torch.Generator().manual_seed(0)
        directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
        self.things = torch.tensor(things)
        self.patches = directions[self.things] + 0.01 * torch.randn(side * side, WIDTH, generator=generator)
        self._text = torch.tensor([[1.0, 0.0]])
        # Relevance opposes the cosine with the question.
        cosine = -torch.tensor(relevance)[self.things]
        self._joint = torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)
        self.attention = torch.full((side * side,), 1 / side**2)
        self.padding = torch.zeros(side * side, dtype=torch.bool)

    def joint(self):
        return self._joint

    def question(self):
        return self._text

    def relevance(self):
        return patch_relevance(10 * (self._joint @ self._text[0])[None])[0]

    def cls_attention(self):
        return self.attention

    def in_padding(self):
        return self.padding


def three_things():
    """Three rows of one relevant thing, two of another, one of what the question is not about."""
    return ThingsImage([0] * 18 + [1] * 12 + [2] * 6, relevance=[0.9, 0.8, -0.9])
