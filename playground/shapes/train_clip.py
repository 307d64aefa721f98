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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from playground.shapes.clip_tokenizer import CONTEXT, train_clip_tokenizer
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
from playground.shapes.world import COLORS, GRID, PATCH, SHAPES, SIZE, TRAIN, Scene, stream

# Shapes: B pictures, N patches of a picture, Q questions about each, T texts, D tower width, E joint width.

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PROJECTION = 64
HEAD = 32
# Patches that a step sees when background is left out. A picture's things cover at most about 52.
SEEN_PATCHES = 80
# A patch belongs to a thing that covers this much of it; patches between the two bounds teach nothing.
COVERED, FREE = 0.35, 0.08
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


def build_clip(preset: Preset, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A randomly initialized CLIP of the preset's size for 224-pixel pictures in patches of 14."""
    width = preset.clip_width
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128 if width > 128 else width,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": (128 if width > 128 else width) // HEAD,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_dim": PROJECTION,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": preset.clip_layers,
        "num_attention_heads": width // HEAD,
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_act": "gelu",
        "projection_dim": PROJECTION,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION))


def normalize(pictures: NDArray[np.uint8]) -> Tensor:
    """Turn pictures (B, 224, 224, 3) into pixels (B, 3, 224, 224), as the checkpoint's processor does."""
    pixels = torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def encode_picture(model: CLIPModel, pixels: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Run the vision tower over some patches of each picture.

    Args:
        model: The whole CLIP.
        pixels: Normalized pictures, (B, 3, 224, 224).
        patches: Indices of the patches to see, (B, N').

    Returns:
        The patches of the penultimate layer in the joint space (B, N', E), and the pooled picture in it (B,
        E).
    """
    tower = model.vision_model
    hidden = tower.embeddings(pixels)  # (B, 1 + N, D)
    chosen = patches.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
    hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, chosen)], dim=1)
    hidden = tower.pre_layrnorm(hidden)
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    last = tower.encoder.layers[-1](hidden, attention_mask=None)
    joint = model.visual_projection(tower.post_layernorm(hidden[:, 1:]))
    return joint, model.visual_projection(tower.post_layernorm(last[:, 0]))


def encode_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Pooled texts in the joint space, (T, E)."""
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=CONTEXT, return_tensors="pt")
    tokens = tokens.to(model.device)
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    return model.text_projection(pooled)


def contrastive_loss(pooled: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """CLIP's own loss: each picture (B, E) finds its caption (B, E) among all, and the reverse."""
    logits = scale.exp().clamp(max=100) * F.normalize(pooled, dim=-1) @ F.normalize(captions, dim=-1).T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def attribute_loss(joint: Tensor, texts: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of patches over attribute texts, lowest dot product first.

    Args:
        joint: Patches in the joint space, (B, N, E).
        texts: One text per attribute, (T, E).
        label: The attribute that each patch depicts, -100 where none or several, (B, N).
    """
    return F.cross_entropy((-joint @ texts.T).flatten(0, 1), label.flatten(), ignore_index=-100)


def naming_loss(joint: Tensor, questions: Tensor, share: Tensor, ground: Tensor) -> tuple[Tensor, Tensor]:
    """Make dot products low on the patches that a question names, and high and even on the others.

    Args:
        joint: Patches in the joint space, (B, N, E).
        questions: Questions in it, (B, Q, E).
        share: Share of each patch that named things cover, (B, Q, N).
        ground: Which patches show background only, bool (B, N).

    Returns:
        The classification loss, named and other patches weighing the same, and the unevenness of the others:
        the variance of the background's products, and how far things that are not named fall below their
        mean.
    """
    products = torch.einsum("bne,bqe->bqn", joint, questions)
    named, other = (share > COVERED).float(), (share < FREE).float()
    classified = _weighted_mean(F.softplus(products), named) + _weighted_mean(F.softplus(-products), other)
    empty = ground.unsqueeze(1).float().expand_as(products)
    mean = (products * empty).sum(-1, keepdim=True) / empty.sum(-1, keepdim=True).clamp(min=1)
    shortfall = F.relu(mean - products).square()
    variance = _weighted_mean((products - mean).square(), empty)
    return classified, variance + _weighted_mean(shortfall, other * (1 - empty))


def _weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    return (values * weight).sum() / weight.sum().clamp(min=1)


class ClipSchool:
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
    school = ClipSchool(model, tokenizer, pictures, preset)
    fit(model, school.step_loss, sum(preset.clip_steps), 1.5e-3, unfinished.with_name("clip.state"))
    model.to(torch.float16).save_pretrained(unfinished)
    (unfinished / "preprocessor_config.json").write_text(PREPROCESSOR)
    unfinished.rename(folder)


PREPROCESSOR = f"""{{
  "feature_extractor_type": "CLIPFeatureExtractor",
  "do_resize": true,
  "size": {SIZE},
  "resample": 3,
  "do_center_crop": true,
  "crop_size": {SIZE},
  "do_normalize": true,
  "image_mean": {list(MEAN)},
  "image_std": {list(DEVIATION)}
}}
"""
