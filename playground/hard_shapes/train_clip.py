"""Train a small CLIP on crowded scenes: as for the easy ones, and to know what else is asked about.

`playground.shapes.train_clip` says why patches are trained to oppose the text that they depict, and how.
Here a patch also opposes the character that is written on its thing; and because a CLIP this small forgets
what its losses do not ask for, linear layers that are thrown away afterwards read from every patch that the
language model is to get: its row and column, how large its thing is, and whether it is the one at the
thing's center, by which things can be counted.

What makes it learn in a third of the steps: positions that begin as waves, so that near patches have similar
ones; half of the attention heads begin by looking at patches nearby; and Muon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from playground.hard_shapes.glyphs import CHARACTERS
from playground.hard_shapes.questions import KINDS, TEMPLATES, ask, describe
from playground.hard_shapes.scene import GRID, MOST_THINGS, PATCH, SIZE, TRAIN, Scene, center_patches
from playground.shapes.clip_losses import COVERED, FREE, attribute_loss, contrastive_loss, naming_loss
from playground.shapes.clip_model import build_clip, encode_texts, normalize, preprocessor
from playground.shapes.clip_tokenizer import train_clip_tokenizer
from playground.shapes.loop import Report, fit, pick_device
from playground.shapes.pictures import World, read_pictures
from playground.shapes.presets import Preset
from playground.shapes.questions import Question, named_words
from playground.shapes.world import COLORS, SHAPES, stream

# Shapes: B pictures, N patches of a picture, N' of them seen, Q questions about each, D tower width.

HARD_WORLD = World(TRAIN, Scene.from_seed, MOST_THINGS, GRID)
# Patches that a step sees while most background is left out. A picture's things touch at most about 110.
SEEN_PATCHES = 128
QUESTIONS = 2
# Share of a patch that a thing covers where the patch is to say something of it.
ATTRIBUTE_TEXTS = {
    "color": ("something {}", "a {} object", "{}", "What shape is the {} object?"),
    "shape": ("a {}", "the {}", "{}", "What color is the {}?"),
    "character": ("the character {}", "object marked {}", "shape with a {} on it", "{}"),
}
NAMES = {"color": tuple(COLORS), "shape": SHAPES, "character": CHARACTERS}
WEIGHTS = {"naming": 1.0, "uneven": 0.1, "color": 0.5, "shape": 1.0, "character": 1.0, "contrast": 0.1}
WEIGHTS |= {"place": 0.3, "center": 0.5, "size": 0.5}
# How strongly heads that begin near look at the patch itself, and how large positions are.
NEARNESS, WAVES = 1.8, 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step sees.

    Attributes:
        scenes: What is in the pictures.
        pixels: Of the patches that the tower sees, normalized, (B, N', 3 * 14 * 14).
        coverage: Share of each of them that each thing covers, (B, things, N').
        patches: Which they are, (B, N').
    """

    scenes: list[Scene]
    pixels: Tensor
    coverage: Tensor
    patches: Tensor


class Learner(nn.Module):
    """The CLIP, and the linear layers that are thrown away.

    Attributes:
        clip: What remains.
        probe: From a patch of the penultimate layer to the logits of its row and of its column, of being at
            the center of its thing, and the logarithm of the thing's side over the patch's.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        self.probe = nn.Linear(clip.config.vision_config.hidden_size, 2 * GRID + 2)


class ClipTraining:
    """The losses of one step, from pictures on disk.

    Attributes:
        learner: What learns.
    """

    def __init__(self, learner: Learner, tokenizer: CLIPTokenizer, pictures: Path, preset: Preset) -> None:
        """Read how the things of every training picture cover its patches."""
        self.learner = learner
        self._tokenizer = tokenizer
        self._pictures = pictures
        self._preset = preset
        self._coverage = np.load(pictures / "coverage.npy", mmap_mode="r")

    def step_loss(self, step: int) -> Report:
        """Return the losses of one step, which a resumed run repeats exactly."""
        rng = np.random.default_rng([11, step])
        batch = self._draw_batch(rng, whole=step >= self._preset.clip_steps[0])
        questions = [_questions_about(scene, rng) for scene in batch.scenes]
        texts = [question.text for several in questions for question in several]
        texts += [describe(scene) for scene in batch.scenes]
        for name, templates in ATTRIBUTE_TEXTS.items():
            template = templates[int(rng.integers(len(templates)))]
            texts += [template.format(value) for value in NAMES[name]]
        device = self.learner.clip.device
        # In float32 the products take most of the time; sums, softmaxes and norms stay in it.
        with torch.autocast(device.type, torch.bfloat16):
            hidden, joint, pooled = encode_picture(self.learner.clip, batch.pixels, batch.patches)
            encoded = encode_texts(self.learner.clip, self._tokenizer, texts)
            probed = self.learner.probe(hidden)
        hidden, joint, pooled, encoded, probed = (
            one.float() for one in (hidden, joint, pooled, encoded, probed)
        )
        size = len(batch.scenes)
        asked, told, *attributes = encoded.split(
            [size * QUESTIONS, size, *(len(NAMES[name]) for name in ATTRIBUTE_TEXTS)]
        )
        named, meant = _shares(batch, questions)
        ground = batch.coverage.amax(1) < FREE
        naming, uneven = naming_loss(joint, asked.unflatten(0, (size, QUESTIONS)), named, ground, meant)
        losses = {"naming": naming, "uneven": uneven}
        for name, values in zip(ATTRIBUTE_TEXTS, attributes, strict=True):
            losses[name] = attribute_loss(joint, values, _labels(batch, name))
        losses["contrast"] = contrastive_loss(pooled, told, self.learner.clip.logit_scale)
        losses |= _probe_losses(probed, batch)
        total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}

    def _draw_batch(self, rng: np.random.Generator, whole: bool) -> Batch:
        """Draw a batch; the tower sees its ``whole`` pictures, or the things' patches and some background."""
        rows = rng.choice(len(self._coverage), self._preset.clip_batch, replace=False)
        seeds = np.asarray(TRAIN[0] + rows)
        device = self.learner.clip.device
        coverage = torch.from_numpy(self._coverage[rows].astype(np.float32)).flatten(2)  # (B, things, N)
        order = (coverage.amax(1) > FREE).float() + torch.from_numpy(rng.random((len(rows), GRID * GRID)))
        patches = order.topk(GRID * GRID if whole else SEEN_PATCHES, dim=-1).indices.sort(-1).values
        seen = coverage.gather(2, patches.unsqueeze(1).expand(-1, coverage.shape[1], -1))
        scenes = [Scene.from_seed(int(seed)) for seed in seeds]
        pixels = cut_patches(read_pictures(self._pictures, seeds), patches.numpy())
        return Batch(scenes, pixels.to(device), seen.to(device), patches.to(device))


def cut_patches(pictures: NDArray[np.uint8], patches: NDArray[np.int64]) -> Tensor:
    """Cut some patches (B, N') out of pictures (B, side, side, 3), normalized: (B, N', 3 * 14 * 14)."""
    count, side = len(pictures), pictures.shape[1] // PATCH
    cut = pictures.reshape(count, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    cut = cut.reshape(count, side * side, PATCH * PATCH * 3)
    seen = np.take_along_axis(cut, patches[..., None], axis=1)
    # As pictures of one patch each.
    normal = normalize(seen.reshape(-1, PATCH, PATCH, 3))
    return normal.reshape(count, patches.shape[1], -1)


def encode_picture(model: CLIPModel, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Run the vision tower over some patches of each picture.

    Args:
        model: The whole CLIP.
        pixels: Of the patches to see, normalized, (B, N', 3 * 14 * 14).
        patches: Which they are, (B, N').

    Returns:
        The patches of the penultimate layer (B, N', D), the same in the joint space (B, N', E), and the
        pooled picture in it (B, E).
    """
    tower = model.vision_model
    embeddings = tower.embeddings
    embedded = F.linear(pixels, embeddings.patch_embedding.weight.flatten(1))
    embedded = embedded + embeddings.position_embedding.weight[1:][patches]
    first = embeddings.class_embedding + embeddings.position_embedding.weight[0]
    hidden = torch.cat([first.expand(len(pixels), 1, -1), embedded], dim=1)
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    last = tower.encoder.layers[-1](hidden, attention_mask=None)
    joint = model.visual_projection(tower.post_layernorm(hidden[:, 1:]))
    return hidden[:, 1:], joint, model.visual_projection(tower.post_layernorm(last[:, 0]))


def begin_near(model: CLIPModel) -> None:
    """Let positions begin as waves, and half of the vision tower's heads by looking at patches nearby."""
    vision = model.config.vision_config
    width, heads = vision.hidden_size, vision.num_attention_heads
    head = width // heads
    count = width // 4  # of wave lengths
    lengths = torch.logspace(math.log10(2 * math.pi / (2.5 * GRID)), math.log10(math.pi / 2), count)
    turns = torch.arange(GRID).unsqueeze(1) * lengths  # (24, count)
    waves = torch.stack([turns.sin(), turns.cos()], dim=-1)  # (24, count, 2)
    rows = waves.unsqueeze(1).expand(-1, GRID, -1, -1)
    columns = waves.unsqueeze(0).expand(GRID, -1, -1, -1)
    positions = torch.cat([rows, columns], dim=2).reshape(GRID * GRID, width)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding.weight[1:] = WAVES * positions
        for layer in model.vision_model.encoder.layers:
            attention = layer.self_attn
            for number in range(0, heads, 2):
                # As many wave lengths of rows as of columns, each with sine and cosine.
                picked = torch.randperm(count, generator=generator)[: head // 4]
                dimensions = torch.stack([2 * picked, 2 * picked + 1], dim=1).flatten()
                dimensions = torch.cat([dimensions, dimensions + 2 * count])
                chosen = F.one_hot(dimensions, width).float() * NEARNESS
                rows_of_head = slice(number * head, number * head + len(dimensions))
                attention.q_proj.weight[rows_of_head] = chosen
                attention.k_proj.weight[rows_of_head] = chosen


def _questions_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Return `QUESTIONS` questions, of any kind."""
    return [ask(scene, rng, KINDS[int(rng.integers(len(KINDS)))]) for _ in range(QUESTIONS)]


def _shares(batch: Batch, questions: Sequence[Sequence[Question]]) -> tuple[Tensor, Tensor]:
    """Tell what patches show of what questions name.

    Returns:
        Share of each patch that things cover which a question names, (B, Q, N'); the same of all things that
        have a color or a shape in common with its words, which are not told to be unlike it.
    """
    named = torch.zeros(len(questions), QUESTIONS, batch.coverage.shape[1])
    meant = torch.zeros_like(named)
    for row, (scene, several) in enumerate(zip(batch.scenes, questions, strict=True)):
        for column, question in enumerate(several):
            words = set(named_words(question.text))
            named[row, column, list(question.named)] = 1
            for index, thing in enumerate(scene.things):
                meant[row, column, index] = float(thing.color in words or thing.shape in words)
    meant = torch.maximum(named, meant)
    device = batch.coverage.device
    return (
        torch.einsum("bqt,btn->bqn", named.to(device), batch.coverage),
        torch.einsum("bqt,btn->bqn", meant.to(device), batch.coverage),
    )


def _labels(batch: Batch, attribute: str) -> Tensor:
    """Return the number of the attribute of the thing that each patch shows, -100 where none, (B, N')."""
    table = torch.full(batch.coverage.shape[:2], -100, dtype=torch.long)
    for row, scene in enumerate(batch.scenes):
        for column, thing in enumerate(scene.things):
            if value := getattr(thing, attribute):
                table[row, column] = NAMES[attribute].index(value)
    share, thing_index = batch.coverage.max(1)
    label = table.to(share.device).gather(1, thing_index)
    return label.masked_fill(share <= COVERED, -100)


def _probe_losses(probed: Tensor, batch: Batch) -> Report:
    """Return what the linear layers get wrong: places of all patches, centers and sizes of things."""
    row, column, center, size = probed.split([GRID, GRID, 1, 1], dim=-1)
    place = F.cross_entropy(row.flatten(0, 1), (batch.patches // GRID).flatten())
    place = place + F.cross_entropy(column.flatten(0, 1), (batch.patches % GRID).flatten())
    centers = torch.full(batch.coverage.shape[:2], -1, dtype=torch.long)
    sizes = torch.zeros(batch.coverage.shape[:2])
    shares, patches = batch.coverage.cpu().numpy(), batch.patches.cpu().numpy()
    for number, scene in enumerate(batch.scenes):
        count = len(scene.things)
        own = center_patches(scene.things, shares[number, :count], patches[number])
        centers[number, :count] = torch.tensor(own)
        sizes[number, :count] = torch.tensor([math.log(thing.size / PATCH) for thing in scene.things])
    device = probed.device
    is_center = (batch.patches.unsqueeze(1) == centers.to(device).unsqueeze(-1)).any(1)
    share, thing_index = batch.coverage.max(1)
    shown = share > FREE
    weight = (shown | is_center).float()
    centered = F.binary_cross_entropy_with_logits(
        center.squeeze(-1), is_center.float(), weight, reduction="sum"
    )
    true_size = sizes.to(device).gather(1, thing_index)
    covered = (share > COVERED).float()
    missed = ((size.squeeze(-1) - true_size).square() * covered).sum() / covered.sum().clamp(min=1)
    return {"place": place, "center": centered / weight.sum().clamp(min=1), "size": missed}


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


def train_clip(preset: Preset, pictures: Path, folder: Path) -> None:
    """Train the CLIP and write it to ``folder`` in the released layout, in half precision.

    Args:
        preset: Sizes.
        pictures: What `draw_pictures` wrote.
        folder: Receives config, weights, tokenizer and image processor; exists afterwards only if complete.
    """
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer = train_clip_tokenizer(world_texts(1000), 300, unfinished)
    model = build_clip(preset, tokenizer, SIZE)
    model.set_attn_implementation("eager")  # whose backward pass is faster on a CPU, at these lengths
    begin_near(model)
    learner = Learner(model).to(pick_device())
    training = ClipTraining(learner, tokenizer, pictures, preset)
    state = unfinished.with_name("clip.state")
    fit(learner, training.step_loss, sum(preset.clip_steps), 1.5e-3, state, muon=True)
    model.to(torch.float16).save_pretrained(unfinished)
    (unfinished / "preprocessor_config.json").write_text(preprocessor(SIZE))
    unfinished.rename(folder)
