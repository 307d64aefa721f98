"""The steps from nothing to the checkpoints for crowded scenes, in order, each with what it leaves behind."""

from __future__ import annotations

from pathlib import Path

from playground.hard_shapes.make_data import stage1_sample, stage2_sample
from playground.hard_shapes.text_pretraining import pretrain_text
from playground.hard_shapes.train_clip import HARD_WORLD, train_clip
from playground.shapes.make_data import write_json
from playground.shapes.pictures import draw_pictures
from playground.shapes.plan import Step, train_llava
from playground.shapes.presets import Preset

CLIP, LLAVA = "clip-hard-shapes", "llava-hard-shapes"


def plan(preset: Preset, work: Path, output: Path, reductions: tuple[str, ...]) -> list[Step]:
    """Return the steps of a build, in order.

    Args:
        preset: Sizes.
        work: Folder of everything in between.
        output: Receives the checkpoints.
        reductions: What the language model is trained with; each makes a checkpoint.
    """
    pictures, clip, llama = work / "pictures", work / "clip-shapes", work / "llama"
    captions, questions = work / "stage1.json", work / "stage2.json"

    def write_captions() -> None:
        write_json((stage1_sample(n, preset.pictures) for n in range(preset.stage1_samples)), captions)

    def write_questions() -> None:
        write_json(
            (stage2_sample(n, preset.pictures, preset.stage2_batch) for n in range(preset.stage2_samples)),
            questions,
        )

    def draw() -> None:
        draw_pictures(pictures, preset.pictures, HARD_WORLD)

    return [
        Step("pictures", pictures / "coverage.npy", draw),
        Step("CLIP", clip, lambda: train_clip(preset, pictures, clip)),
        Step("text pretraining", llama, lambda: pretrain_text(preset, llama)),
        Step("captions", captions, write_captions),
        Step("questions", questions, write_questions),
        *train_llava(preset, work, output, reductions, CLIP, LLAVA),
    ]
