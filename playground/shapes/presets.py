"""How large everything is, per preset: the one place where the presets differ."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes of one build of the shapes checkpoints.

    Attributes:
        pictures: Training pictures drawn to disk.
        clip_width: Width of CLIP's two towers.
        clip_layers: Layers of its vision tower; the language model reads the last but one.
        clip_steps: Steps with most background patches left out, then steps with all patches.
        clip_batch: Pictures per step.
        llama_width: Width of the language model.
        llama_layers: Its layers.
        text_steps: Steps of the text pretraining.
        text_batch: Written scenes per step.
        stage1_samples: Pictures with a caption, for the projector alone.
        stage2_samples: Conversations about a picture, for the whole model.
        stage2_batch: Of these per step.
    """

    pictures: int
    clip_width: int
    clip_layers: int
    clip_steps: tuple[int, int]
    clip_batch: int
    llama_width: int
    llama_layers: int
    text_steps: int
    text_batch: int
    stage1_samples: int
    stage2_samples: int
    stage2_batch: int


PRESETS = {
    "small": Preset(
        pictures=20_000,
        clip_width=160,
        clip_layers=5,
        clip_steps=(5600, 400),
        clip_batch=32,
        llama_width=192,
        llama_layers=5,
        text_steps=900,
        text_batch=24,
        stage1_samples=4_800,
        stage2_samples=21_600,
        stage2_batch=32,
    ),
    "smoke": Preset(
        pictures=96,
        clip_width=32,
        clip_layers=3,
        clip_steps=(4, 2),
        clip_batch=8,
        llama_width=64,
        llama_layers=2,
        text_steps=5,
        text_batch=4,
        stage1_samples=32,
        stage2_samples=48,
        stage2_batch=8,
    ),
}
