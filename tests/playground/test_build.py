import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llava.errors import UserError
from playground.hard_shapes.presets import HARD_PRESETS
from playground.shapes.plan import SHAPES_KIT, STAMP, claim_folder, plan, refuse_other_clip
from playground.shapes.presets import PRESETS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "playground" / "shapes" / "build.sh"


def test_help_names_the_presets():
    told = subprocess.run(["bash", BUILD, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in (*PRESETS, *HARD_PRESETS))


def test_another_clip_is_not_taken_from_the_models_that_use_it(tmp_path):
    work, output = tmp_path / "work", tmp_path / "output"
    refuse_other_clip(SHAPES_KIT, work, output)
    for folder, weights in ((output / SHAPES_KIT.clip, b"one"), (work / "clip-shapes", b"two")):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=f"{output} has another clip-shapes.*or copy it to {work}"):
        refuse_other_clip(SHAPES_KIT, work, output)
    (work / "clip-shapes" / "model.safetensors").write_bytes(b"one")
    refuse_other_clip(SHAPES_KIT, work, output)


def test_a_folder_is_of_one_preset(tmp_path):
    (tmp_path / "clip-shapes").mkdir()  # as a folder from before, or one with a CLIP to begin with
    for _ in range(2):
        claim_folder(tmp_path, "full", HARD_PRESETS["full"])
    sizes = HARD_PRESETS["full"]
    stamp = json.loads((tmp_path / STAMP).read_text())
    assert (stamp["preset"], stamp["clip_steps"]) == ("full", list(sizes.clip_steps))
    with pytest.raises(
        UserError, match=f"{tmp_path} is of a build with preset full, not small; choose another"
    ):
        claim_folder(tmp_path, "small", PRESETS["small"])
    with pytest.raises(UserError, match=f"with text_steps {sizes.text_steps}, not 7; choose another --work"):
        claim_folder(tmp_path, "full", replace(sizes, text_steps=7))


def test_a_folder_of_another_preset_is_refused_before_anything_is_made(tmp_path):
    claim_folder(tmp_path, "full-smoke", HARD_PRESETS["full-smoke"])
    command = ["bash", BUILD, "--preset", "smoke", "--work", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    told = f"error: {tmp_path} is of a build with preset full-smoke, not smoke; choose another --work\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    assert [file.name for file in tmp_path.iterdir()] == [STAMP]


@pytest.mark.parametrize("name", ["captions", "questions"])
def test_a_training_set_is_made_again_beside_a_training_that_was_interrupted(name, tmp_path):
    steps = {step.name: step for step in plan(SHAPES_KIT, PRESETS["smoke"], tmp_path, tmp_path, ["TRIM:-1"])}
    (tmp_path / "stage1.unfinished").mkdir()
    (tmp_path / "stage2.unfinished").mkdir()
    steps[name].run()
    assert json.loads(steps[name].result.read_text())[0]["id"] == "shapes-0"


def test_folders_are_those_of_where_it_was_called(tmp_path):
    (tmp_path / "file").write_text("")
    command = ["bash", BUILD, "--preset", "smoke", "--work", "file/work"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: the folder {tmp_path}/file/work could not be made: Not a directory\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "models", "steps"),
    [
        ("smoke", ["llava-shapes"], 7),
        ("full-smoke", ["llava-hard-shapes", "llava-hard-shapes-none"], 9),
    ],
)
def test_smoke_builds_make_models_that_answer_and_are_not_made_twice(preset, models, steps, tmp_path):
    command = ["bash", BUILD, "--preset", preset, "--work", tmp_path]
    subprocess.run(command, check=True, timeout=600)
    ask = "import sys; from llava.main import main; sys.exit(main())"
    for model in models:
        checkpoint = tmp_path / "checkpoints" / model
        picture = ROOT / "images" / "shapes.png"
        arguments = ["ask", "--model-path", checkpoint, "--image", picture, "What color is the star?"]
        subprocess.run([sys.executable, "-c", ask, *arguments], check=True, cwd=ROOT, timeout=120)
        reduction = json.loads((checkpoint / "config.json").read_text())["mm_vision_token_reduce_func"]
        assert reduction == (None if model.endswith("none") else "TRIM:-1")
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert again.count("there already") == steps
    if preset == "full-smoke":  # what was built is also what trials of single kinds begin with
        trial = [sys.executable, "-m", "playground.hard_shapes.recipe", "--work", tmp_path, "--samples", "8"]
        trial += ["--kinds", "count", "--questions", "2"]
        told = subprocess.run(trial, capture_output=True, text=True, check=True, cwd=ROOT, timeout=300).stdout
        assert told.splitlines()[-1].startswith("| count | 8")
