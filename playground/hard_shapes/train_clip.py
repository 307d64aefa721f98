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
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from playground.hard_shapes.clip_batches import (
    ATTRIBUTE_TEXTS,
    NAMES,
    QUESTIONS,
    Batch,
    ClipBatches,
    world_texts,
)
from playground.hard_shapes.scene import GRID, MOST_THINGS, SIZE, TRAIN, Scene
from playground.shapes.clip_losses import COVERED, FREE, attribute_loss, contrastive_loss, naming_loss
from playground.shapes.clip_model import build_clip, save_clip
from playground.shapes.clip_tokenizer import train_clip_tokenizer
from playground.shapes.loop import Ahead, Report, fit, pick_device
from playground.shapes.pictures import World
from playground.shapes.presets import Preset

# Shapes: B pictures, N' patches of a picture that are seen, Q questions about each, D tower width.

HARD_WORLD = World(TRAIN, Scene.from_seed, MOST_THINGS, GRID)
WEIGHTS = {"naming": 1.0, "uneven": 0.1, "color": 0.5, "shape": 1.0, "character": 1.0, "contrast": 0.1}
WEIGHTS |= {"place": 0.3, "center": 0.5, "size": 0.5}
# With so many patches or more, attention's own kernel is the faster one on a CPU.
LONG = 400
# How strongly heads that begin near look at the patch itself, and how large positions are.
NEARNESS, WAVES = 1.8, 0.5


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

    def losses(self, batch: Batch) -> Report:
        """Return the losses of a batch, and under ``loss`` what is minimized."""
        batch = batch.to(self.clip.device)
        self.clip.set_attn_implementation("sdpa" if batch.patches.shape[1] >= LONG else "eager")
        # In float32 the products take most of the time; sums, softmaxes and norms stay in it.
        with torch.autocast(self.clip.device.type, torch.bfloat16):
            hidden, joint, pooled = encode_picture(self.clip, batch.pixels, batch.patches)
            read = self.clip.text_model(input_ids=batch.text_ids, attention_mask=batch.text_mask)
            encoded = self.clip.text_projection(read.pooler_output)
            probed = self.probe(hidden)
        joint, pooled, encoded, probed = (one.float() for one in (joint, pooled, encoded, probed))
        size = len(batch.pixels)
        asked, told, *attributes = encoded.split(
            [size * QUESTIONS, size, *(len(NAMES[name]) for name in ATTRIBUTE_TEXTS)]
        )
        asked = asked.unflatten(0, (size, QUESTIONS))
        naming, uneven = naming_loss(joint, asked, batch.named, batch.ground, batch.related)
        losses = {"naming": naming, "uneven": uneven}
        labels = (batch.colors, batch.shapes, batch.characters)
        for name, values, label in zip(ATTRIBUTE_TEXTS, attributes, labels, strict=True):
            losses[name] = attribute_loss(joint, values, label)
        losses["contrast"] = contrastive_loss(pooled, told, self.clip.logit_scale)
        losses |= probe_losses(probed, batch)
        total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
        return {"loss": total, **losses}


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


def probe_losses(probed: Tensor, batch: Batch) -> Report:
    """Return what the linear layers get wrong: places of all patches, centers and sizes of things."""
    row, column, center, size = probed.split([GRID, GRID, 1, 1], dim=-1)
    place = F.cross_entropy(row.flatten(0, 1), (batch.patches // GRID).flatten())
    place = place + F.cross_entropy(column.flatten(0, 1), (batch.patches % GRID).flatten())
    weight = torch.maximum((batch.shown > FREE).float(), batch.centers)
    centered = F.binary_cross_entropy_with_logits(center.squeeze(-1), batch.centers, weight, reduction="sum")
    covered = (batch.shown > COVERED).float()
    missed = (size.squeeze(-1) - batch.sizes).square() * covered
    return {
        "place": place,
        "center": centered / weight.sum().clamp(min=1),
        "size": missed.sum() / covered.sum().clamp(min=1),
    }


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
    begin_near(model)
    learner = Learner(model).to(pick_device())
    batches = ClipBatches(tokenizer, pictures, preset)
    state = unfinished.with_name("clip.state")
    work = Ahead(batches.prepare, learner.losses)
    fit(learner, work, sum(preset.clip_steps), 1.5e-3, state, muon=True)
    save_clip(model, unfinished, folder, SIZE)
    state.unlink()
