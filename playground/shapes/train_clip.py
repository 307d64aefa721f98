"""Train the toy CLIP: contrastive as usual, and with patches that *oppose* the text they depict.

TRIM keeps the patches whose projected features have an unusually *low* dot product with the question, because
the patches of OpenAI's CLIP oppose the text that describes them (arXiv:2304.05653). There that is a
by-product of training on 400 million pairs; a CLIP this small must be taught it. So beside the contrastive
loss on pooled features, the penultimate layer's patches, taken through ``post_layernorm`` and
``visual_projection`` as the reducer takes them, are trained against texts with the sign turned around:

* *attributes*: among the texts of all colors, a patch of a red thing has its lowest dot product with the text
  of red; likewise shapes. That also makes the patches carry what the language model is to read.
* *naming*: a question's dot product is low on the patches of the things it names and high on all others;
* *evenness*: on those others it is about the same everywhere, be it background or a thing that is not named,
  for the interquartile rule is about outliers.

Most steps leave out most background patches, as in FLIP (arXiv:2212.00794), which trains about twice as fast;
the last ones see whole pictures, as in use.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from playground.shapes.clip_losses import COVERED, FREE, attribute_loss, contrastive_loss, naming_loss
from playground.shapes.clip_model import build_clip, encode_picture, encode_texts, normalize, save_clip
from playground.shapes.clip_tokenizer import train_clip_tokenizer
from playground.shapes.loop import Report, fit, pick_device
from playground.shapes.pictures import read_pictures
from playground.shapes.presets import Preset
from playground.shapes.questions import (
    DESCRIPTION_TEMPLATES,
    Question,
    ask,
    ask_description,
    ask_several,
    describe,
)
from playground.shapes.world import COLORS, GRID, SHAPES, TRAIN, Scene, stream

# Shapes: B pictures, N patches of a picture, Q questions about each.

# Patches that a step sees when background is left out. A picture's things cover at most about 52.
SEEN_PATCHES = 80
QUESTIONS = 2
COLOR_TEXTS = ("something {}", "a {} object", "{}", "What shape is the {} object?")
SHAPE_TEXTS = ("a {}", "the {}", "{}", "What color is the {}?")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step sees.

    Attributes:
        scenes: What is in the pictures.
        pixels: Normalized pictures, (B, 3, 224, 224).
        coverage: Share of each patch that each thing covers, (B, things, N).
        patches: Which patches the tower sees, (B, N' <= N), indices into N.
    """

    scenes: list[Scene]
    pixels: Tensor
    coverage: Tensor
    patches: Tensor


class ClipTraining:
    """The losses of one step, from pictures on disk.

    Attributes:
        model: The CLIP that learns.
    """

    def __init__(self, model: CLIPModel, tokenizer: CLIPTokenizer, pictures: Path, preset: Preset) -> None:
        """Read how the things of every training picture cover its patches."""
        self.model = model
        self._tokenizer = tokenizer
        self._pictures = pictures
        self._preset = preset
        self._coverage = np.load(pictures / "coverage.npy", mmap_mode="r")

    def step_loss(self, step: int) -> Report:
        """The losses of one step, which a resumed run repeats exactly."""
        rng = np.random.default_rng([11, step])
        whole = step >= self._preset.clip_steps[0]
        batch = self._draw_batch(rng, whole)
        joint, pooled = encode_picture(self.model, batch.pixels, batch.patches)
        questions = [_questions_about(scene, rng) for scene in batch.scenes]
        captions = [describe(scene) for scene in batch.scenes]
        texts = [question.text for several in questions for question in several] + captions
        texts += [COLOR_TEXTS[int(rng.integers(len(COLOR_TEXTS)))].format(color) for color in COLORS]
        texts += [SHAPE_TEXTS[int(rng.integers(len(SHAPE_TEXTS)))].format(shape) for shape in SHAPES]
        encoded = encode_texts(self.model, self._tokenizer, texts)
        size = len(batch.scenes)
        asked, told, colors, shapes = encoded.split([size * QUESTIONS, size, len(COLORS), len(SHAPES)])
        share = _named_share(batch.coverage, questions)  # (B, Q, N')
        ground = batch.coverage.amax(1) < FREE
        naming, unevenness = naming_loss(joint, asked.unflatten(0, (size, QUESTIONS)), share, ground)
        color = attribute_loss(joint, colors, _labels(batch, [*COLORS], "color"))
        shape = attribute_loss(joint, shapes, _labels(batch, [*SHAPES], "shape"))
        contrast = contrastive_loss(pooled, told, self.model.logit_scale)
        loss = naming + 0.1 * unevenness + 0.5 * color + shape + 0.1 * contrast
        return {
            "loss": loss,
            "naming": naming,
            "uneven": unevenness,
            "color": color,
            "shape": shape,
            "contrast": contrast,
        }

    def _draw_batch(self, rng: np.random.Generator, whole: bool) -> Batch:
        """Draw a batch; the tower sees its ``whole`` pictures, or the things' patches and some background."""
        rows = rng.choice(len(self._coverage), self._preset.clip_batch, replace=False)
        seeds = np.asarray(TRAIN[0] + rows)
        device = self.model.device
        pixels = normalize(read_pictures(self._pictures, seeds)).to(device)
        coverage = torch.from_numpy(self._coverage[rows].astype(np.float32)).flatten(2)  # (B, things, N)
        order = (coverage.amax(1) > FREE).float() + torch.from_numpy(rng.random((len(rows), GRID * GRID)))
        patches = order.topk(GRID * GRID if whole else SEEN_PATCHES, dim=-1).indices.sort(-1).values
        seen = coverage.gather(2, patches.unsqueeze(1).expand(-1, coverage.shape[1], -1))
        scenes = [Scene.from_seed(int(seed)) for seed in seeds]
        return Batch(scenes, pixels, seen.to(device), patches.to(device))


def _questions_about(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """`QUESTIONS` questions, now and then one about everything."""
    questions = [ask(scene, rng) for _ in range(QUESTIONS)]
    if rng.random() < 0.2:
        questions[0] = ask_description(scene, rng)
    return questions


def _named_share(coverage: Tensor, questions: list[list[Question]]) -> Tensor:
    """Share of each patch that the things covers which each question names, (B, Q, N)."""
    choice = torch.zeros(len(questions), QUESTIONS, coverage.shape[1])
    for row, several in enumerate(questions):
        for column, question in enumerate(several):
            choice[row, column, list(question.named)] = 1
    return torch.einsum("bqt,btn->bqn", choice.to(coverage.device), coverage)


def _labels(batch: Batch, names: list[str], attribute: str) -> Tensor:
    """Number of the attribute that each patch depicts, -100 where no thing covers enough of it, (B, N)."""
    table = torch.zeros(batch.coverage.shape[:2], dtype=torch.long)
    for row, scene in enumerate(batch.scenes):
        for column, thing in enumerate(scene.things):
            table[row, column] = names.index(getattr(thing, attribute))
    share, thing_index = batch.coverage.max(1)
    label = table.to(share.device).gather(1, thing_index)
    return label.masked_fill(share <= COVERED, -100)


def world_texts(count: int) -> list[str]:
    """Texts of the world, from training scenes only, to learn a tokenizer from."""
    texts = list(DESCRIPTION_TEMPLATES)
    for seed in TRAIN[:count]:
        scene, rng = Scene.from_seed(seed), stream(seed, "words")
        texts += [describe(scene), *(question.text for question in ask_several(scene, rng, 3))]
    return texts


def train_clip(preset: Preset, pictures: Path, folder: Path) -> None:
    """Train the toy CLIP and write it to ``folder`` in the released layout, in half precision.

    Args:
        preset: Sizes.
        pictures: What `draw_pictures` wrote.
        folder: Receives config, weights, tokenizer and image processor; exists afterwards only if complete.
    """
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer = train_clip_tokenizer(world_texts(2000), 300, unfinished)
    model = build_clip(preset, tokenizer).to(pick_device())
    training = ClipTraining(model, tokenizer, pictures, preset)
    state = unfinished.with_name("clip.state")
    fit(model, training.step_loss, sum(preset.clip_steps), 1.5e-3, state)
    save_clip(model, unfinished, folder)
    state.unlink()
