"""What one step of CLIP's training sees and is to learn, made from pictures on disk; no model takes part.

Worker processes can make batches ahead, and a batch is a function of its step's number alone, so that a
resumed run sees what an uninterrupted one would.

Shapes: B pictures, N patches of a picture, N' of them seen, Q questions about each, T texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from playground.hard_shapes.glyphs import CHARACTERS
from playground.hard_shapes.questions import KINDS, TEMPLATES, ask
from playground.hard_shapes.scene import GRID, PATCH, TRAIN, Scene, center_patches
from playground.shapes.clip_losses import COVERED, FREE
from playground.shapes.clip_model import normalize
from playground.shapes.clip_tokenizer import CONTEXT
from playground.shapes.pictures import read_pictures
from playground.shapes.presets import Preset
from playground.shapes.questions import Question, describe, named_words
from playground.shapes.world import COLORS, SHAPES, stream

# Patches that a step sees while most background is left out. A picture's things touch at most about 120.
SEEN_PATCHES = 128
QUESTIONS = 2
ATTRIBUTE_TEXTS = {
    "color": ("something {}", "a {} object", "{}", "What shape is the {} object?"),
    "shape": ("a {}", "the {}", "{}", "What color is the {}?"),
    "character": ("the character {}", "object marked {}", "shape with a {} on it", "{}"),
}
NAMES = {"color": tuple(COLORS), "shape": SHAPES, "character": CHARACTERS}
NONE = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step sees, and what it is to learn.

    Attributes:
        pixels: Of the patches that the tower sees, normalized, (B, N', 3 * 14 * 14).
        patches: Which they are, (B, N').
        text_ids: Questions (B * Q), descriptions (B), and a text for each color, shape and character, padded.
        text_mask: Of the same, 1 for what is no padding.
        named: Share of each patch that things cover which a question names, (B, Q, N').
        related: The same of all things that have a color or a shape in common with its words, which are not
            told to be unlike it, (B, Q, N').
        ground: Which patches show background only, bool (B, N').
        colors: Number of the color that each patch shows, `NONE` where none or too little, (B, N').
        shapes: Likewise of shapes.
        characters: Likewise of characters.
        sizes: Logarithm of the side of the thing that each patch shows, over a patch's, (B, N').
        centers: 1 for the patches at things' centers, (B, N').
        shown: Share of each patch that the thing which it shows covers, (B, N').
    """

    pixels: Tensor
    patches: Tensor
    text_ids: Tensor
    text_mask: Tensor
    named: Tensor
    related: Tensor
    ground: Tensor
    colors: Tensor
    shapes: Tensor
    characters: Tensor
    sizes: Tensor
    centers: Tensor
    shown: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self)}
        return replace(self, **moved)


class ClipBatches:
    """Makes batches from pictures on disk.

    Args:
        tokenizer: CLIP's.
        pictures: What `draw_pictures` wrote.
        preset: Sizes.
    """

    def __init__(self, tokenizer: CLIPTokenizer, pictures: Path, preset: Preset) -> None:
        self._tokenizer = tokenizer
        self._pictures = pictures
        self._preset = preset
        self._coverage = np.load(pictures / "coverage.npy", mmap_mode="r")

    def prepare(self, step: int) -> Batch:
        """Return the batch of a step: most background is left out, but at the end."""
        rng = np.random.default_rng([11, step])
        rows = rng.choice(len(self._coverage), self._preset.clip_batch, replace=False)
        seeds = np.asarray(TRAIN[0] + rows)
        coverage = torch.from_numpy(self._coverage[rows].astype(np.float32)).flatten(2)  # (B, things, N)
        order = (coverage.amax(1) > FREE).float() + torch.from_numpy(rng.random((len(rows), GRID * GRID)))
        count = GRID * GRID if step >= self._preset.clip_steps[0] else SEEN_PATCHES
        patches = order.topk(count, dim=-1).indices.sort(-1).values
        seen = coverage.gather(2, patches.unsqueeze(1).expand(-1, coverage.shape[1], -1))
        scenes = [Scene.from_seed(int(seed)) for seed in seeds]
        asked = [[_ask(scene, rng) for _ in range(QUESTIONS)] for scene in scenes]
        texts = self._tokenizer(
            [*(one.text for several in asked for one in several), *map(describe, scenes), *_attributes(rng)],
            padding=True,
            truncation=True,
            max_length=CONTEXT,
            return_tensors="pt",
        )
        named, related = _named(scenes, asked, seen)
        return Batch(
            pixels=cut_patches(read_pictures(self._pictures, seeds), patches.numpy()),
            patches=patches,
            text_ids=texts.input_ids,
            text_mask=texts.attention_mask,
            named=named,
            related=related,
            ground=seen.amax(1) < FREE,
            colors=_labels(scenes, seen, "color"),
            shapes=_labels(scenes, seen, "shape"),
            characters=_labels(scenes, seen, "character"),
            sizes=_sizes(scenes, seen),
            centers=_centers(scenes, seen, patches),
            shown=seen.amax(1),
        )


def cut_patches(pictures: NDArray[np.uint8], patches: NDArray[np.int64]) -> Tensor:
    """Cut some patches (B, N') out of pictures (B, side, side, 3), normalized: (B, N', 3 * 14 * 14)."""
    count, side = len(pictures), pictures.shape[1] // PATCH
    cut = pictures.reshape(count, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    cut = cut.reshape(count, side * side, PATCH * PATCH * 3)
    seen = np.take_along_axis(cut, patches[..., None], axis=1)
    # As pictures of one patch each.
    normal = normalize(seen.reshape(-1, PATCH, PATCH, 3))
    return normal.reshape(count, patches.shape[1], -1)


def world_texts(count: int) -> list[str]:
    """Return texts about training scenes, to learn a tokenizer from."""
    texts = [text for templates in TEMPLATES.values() for text in templates]
    texts += [
        template.format(value)
        for name, several in ATTRIBUTE_TEXTS.items()
        for template in several
        for value in NAMES[name]
    ]
    for seed in TRAIN[:count]:
        scene, rng = Scene.from_seed(seed), stream(seed, "words")
        texts += [describe(scene), *(ask(scene, rng, kind).text for kind in KINDS)]
    return texts


def _ask(scene: Scene, rng: np.random.Generator) -> Question:
    return ask(scene, rng, KINDS[int(rng.integers(len(KINDS)))])


def _attributes(rng: np.random.Generator) -> list[str]:
    """Return a text for every color, shape and character, all of one attribute alike."""
    texts = []
    for name, templates in ATTRIBUTE_TEXTS.items():
        template = templates[int(rng.integers(len(templates)))]
        texts += [template.format(value) for value in NAMES[name]]
    return texts


def _named(
    scenes: Sequence[Scene], asked: Sequence[Sequence[Question]], coverage: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what patches show of what questions name, and of what shares a word with them; see `Batch`."""
    named = torch.zeros(len(scenes), QUESTIONS, coverage.shape[1])
    related = torch.zeros_like(named)
    for row, (scene, several) in enumerate(zip(scenes, asked, strict=True)):
        for column, question in enumerate(several):
            words = set(named_words(question.text))
            named[row, column, list(question.named)] = 1
            for index, thing in enumerate(scene.things):
                related[row, column, index] = float(thing.color in words or thing.shape in words)
    related = torch.maximum(named, related)
    return torch.einsum("bqt,btn->bqn", named, coverage), torch.einsum("bqt,btn->bqn", related, coverage)


def _labels(scenes: Sequence[Scene], coverage: Tensor, attribute: str) -> Tensor:
    """Return the number of the attribute of the thing that each patch shows, `NONE` where none, (B, N')."""
    table = torch.full(coverage.shape[:2], NONE, dtype=torch.long)
    for row, scene in enumerate(scenes):
        for column, thing in enumerate(scene.things):
            if value := getattr(thing, attribute):
                table[row, column] = NAMES[attribute].index(value)
    share, thing_index = coverage.max(1)
    return table.gather(1, thing_index).masked_fill(share <= COVERED, NONE)


def _sizes(scenes: Sequence[Scene], coverage: Tensor) -> Tensor:
    """Return how large the thing is that each patch shows; see `Batch`."""
    table = torch.zeros(coverage.shape[:2])
    for row, scene in enumerate(scenes):
        table[row, : len(scene.things)] = torch.tensor(
            [math.log(thing.size / PATCH) for thing in scene.things]
        )
    return table.gather(1, coverage.argmax(1))


def _centers(scenes: Sequence[Scene], coverage: Tensor, patches: Tensor) -> Tensor:
    """Mark the patches at things' centers, (B, N')."""
    marks = torch.zeros(patches.shape)
    for row, scene in enumerate(scenes):
        shares = coverage[row, : len(scene.things)].numpy()
        centers = center_patches(scene.things, shares, patches[row].numpy())
        marks[row] = torch.isin(patches[row], torch.tensor(centers)).float()
    return marks
