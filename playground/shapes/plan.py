"""The steps from nothing to the shapes checkpoints, in order, each with what it leaves behind."""

import filecmp
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from llava.errors import UserError
from llava.eval.files import read_json, require_keys, write_json
from playground.shapes.make_data import stage1_sample, stage2_sample
from playground.shapes.pictures import SHAPES_WORLD, World, draw_pictures
from playground.shapes.presets import Preset
from playground.shapes.stages import run_stage1, run_stage2
from playground.shapes.text_pretraining import pretrain_text
from playground.shapes.train_clip import train_clip

REDUCTION = "TRIM:-1"
STAMP = "build.json"
# What a checkpoint folder needs for use; the rest (optimizer, logs) stays in the build's folder.
SHIPPED = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the build.

    Attributes:
        name: What it makes.
        result: The file or folder that exists once it is done; ``None`` if it is always done anew.
        run: Does it.
    """

    name: str
    result: Path | None
    run: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Kit:
    """What makes one dataset's build different from another's.

    Attributes:
        world: Where its scenes come from.
        train_clip: Trains CLIP: from sizes and pictures, into a folder.
        pretrain_text: Trains the language model on text: from sizes, into a folder.
        stage1_sample: Makes a sample of stage 1, of its number and how many pictures there are.
        stage2_sample: Makes one of stage 2, of these and how many are in a batch.
        clip: Name of CLIP's checkpoint.
        llava: Of a LLaVA's, followed by the reduction unless that is TRIM's own count.
    """

    world: World
    train_clip: Callable[[Preset, Path, Path], None]
    pretrain_text: Callable[[Preset, Path], None]
    stage1_sample: Callable[[int, int], dict[str, Any]]
    stage2_sample: Callable[[int, int, int], dict[str, Any]]
    clip: str
    llava: str


SHAPES_KIT = Kit(
    SHAPES_WORLD, train_clip, pretrain_text, stage1_sample, stage2_sample, "clip-shapes", "llava-shapes"
)


def plan(kit: Kit, preset: Preset, work: Path, output: Path, reductions: Sequence[str]) -> list[Step]:
    """The steps of a build, in order.

    Args:
        kit: Of the dataset.
        preset: Sizes.
        work: Folder of everything in between.
        output: Receives the checkpoints.
        reductions: What the language model is trained with; each makes a checkpoint.
    """
    pictures, clip, llama = work / "pictures", work / "clip-shapes", work / "llama"
    captions, questions = work / "stage1.json", work / "stage2.json"
    count, batch = preset.pictures, preset.stage2_batch

    def write_captions() -> None:
        write_json(captions, [kit.stage1_sample(n, count) for n in range(preset.stage1_samples)], indent=0)

    def write_questions() -> None:
        samples = [kit.stage2_sample(n, count, batch) for n in range(preset.stage2_samples)]
        write_json(questions, samples, indent=0)

    return [
        Step("pictures", pictures / "coverage.npy", lambda: draw_pictures(pictures, count, kit.world)),
        Step("CLIP", clip, lambda: kit.train_clip(preset, pictures, clip)),
        Step("text pretraining", llama, lambda: kit.pretrain_text(preset, llama)),
        Step("captions", captions, write_captions),
        Step("questions", questions, write_questions),
        *(step for reduction in reductions for step in train_llava(kit, preset, work, output, reduction)),
    ]


def train_llava(kit: Kit, preset: Preset, work: Path, output: Path, reduction: str) -> list[Step]:
    """Both stages and the checkpoint; see `plan`."""
    stage1, stage2 = stage_folders(work, reduction)
    projector, batch = stage1 / "mm_projector.bin", preset.stage2_batch
    clip, name = work / "clip-shapes", kit.llava + suffix_of(reduction)
    return [
        Step(f"stage 1, {reduction}", stage1, lambda: run_stage1(work, reduction, stage1)),
        Step(f"stage 2, {reduction}", stage2, lambda: run_stage2(work, reduction, projector, batch, stage2)),
        Step(f"checkpoint, {reduction}", None, lambda: ship(clip, stage2, output, kit.clip, name)),
    ]


def suffix_of(reduction: str) -> str:
    """Return what names of folders end in, of what was trained with this reduction."""
    return "" if reduction == REDUCTION else f"-{reduction.replace(':', '-')}"


def stage_folders(work: Path, reduction: str) -> tuple[Path, Path]:
    """Return what the two stages leave behind in a build's folder."""
    suffix = suffix_of(reduction)
    return work / f"stage1{suffix}", work / f"stage2{suffix}"


def claim_folder(work: Path, name: str, preset: Preset) -> None:
    """Write into a build's folder what is built there, and refuse a folder where that is something else.

    A folder without the file, which earlier versions did not write, is taken for one of this build.

    Args:
        work: The folder.
        name: Of the preset.
        preset: Its sizes.

    Raises:
        UserError: If something else is built there.
    """
    stamp = {"preset": name, **json.loads(json.dumps(asdict(preset)))}  # a tuple is a list in JSON
    file = work / STAMP
    if not file.exists():
        write_json(file, stamp, indent=1)
    there = require_keys(read_json(file), ["preset"], str(file))
    for key, value in stamp.items():
        if (other := there.get(key, value)) != value:
            raise UserError(f"{work} is of a build with {key} {other}, not {value}; choose another --work")


def refuse_other_clip(kit: Kit, work: Path, output: Path) -> None:
    """Refuse to put a CLIP where another of its name is, with which the models beside it were trained.

    Raises:
        UserError: If one is there.
    """
    there, own = (folder / "model.safetensors" for folder in (output / kit.clip, work / "clip-shapes"))
    if there.exists() and not (own.exists() and filecmp.cmp(there, own, shallow=False)):
        raise UserError(
            f"{output} has another {kit.clip}, with which the models beside it were trained; choose another "
            f"--output, or copy it to {own.parent} to train with it too"
        )


def ship(clip: Path, stage2: Path, output: Path, clip_name: str, name: str) -> None:
    """Copy CLIP and a LLaVA to where they are used from, in half precision, CLIP's weights only once."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copytree(clip, output / clip_name, dirs_exist_ok=True)
    folder = output / name
    folder.mkdir(exist_ok=True)
    for file_name in SHIPPED:
        if (stage2 / file_name).exists():
            shutil.copy(stage2 / file_name, folder / file_name)
    config = json.loads((stage2 / "config.json").read_text())
    # Beside the checkpoint, wherever both are moved to.
    config |= {"mm_vision_tower": clip_name, "torch_dtype": "float16", "use_cache": True}
    config.pop("dtype", None)
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = load_file(stage2 / "model.safetensors")
    own = {key: weight.half() for key, weight in weights.items() if "vision_tower" not in key}
    unfinished = folder / "unfinished"
    save_file(own, unfinished, metadata={"format": "pt"})
    unfinished.rename(folder / "model.safetensors")
    for file in (*output.glob(f"{clip_name}/*"), *folder.iterdir()):
        file.chmod(0o644)  # safetensors leaves its files to their owner alone
