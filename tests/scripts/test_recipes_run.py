"""Every recipe run for real, a few steps on the shapes world: two processes on the CPU, as users start it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from llava.assistant import Assistant
from playground.shapes import make_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "playground" / "shapes" / "checkpoints"
CLIP, LLAVA = SHAPES / "clip-shapes", SHAPES / "llava-shapes"
ZERO3_OFFLOAD = ROOT / "scripts" / "zero3_offload.json"
LIMIT_S = 600


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes data, and ``llama``: the bundled model's language model without its eyes."""
    folder = tmp_path_factory.mktemp("world")
    assert make_data.main(["--output", str(folder), "--pictures", "12"]) == 0
    llama = shutil.copytree(LLAVA, folder / "llama")
    config = json.loads((llama / "config.json").read_text())
    config = {key: value for key, value in config.items() if "mm_" not in key}
    (llama / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    weights = load_file(llama / "model.safetensors")
    own = {name: tensor for name, tensor in weights.items() if "mm_projector" not in name}
    save_file(own, llama / "model.safetensors", metadata={"format": "pt"})
    return folder


def run(recipe: str, world: Path, *flags: str, **variables: object) -> Path:
    """Run a recipe for three steps in the folder of the data, and return its output folder."""
    output = world / recipe.replace("/", "-").removesuffix(".sh")
    settings = {
        "MODEL": "llama",
        "VISION_TOWER": CLIP,
        "DATA": "questions.json",
        "IMAGES": "pictures",
        "OUTPUT": output,
        "LOGS": Path("logs", output.name),
        "BATCH": 1,
        "GLOBAL_BATCH": 2,
        "WORKERS": 1,
        "SAVE_STEPS": 2,
        "GPUS": 2,
        "DS_ACCELERATOR": "cpu",
        "MASTER_PORT": 29900 + os.getpid() % 90,
        "OMP_NUM_THREADS": 1,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables,
    }
    finished = subprocess.run(
        ["bash", str(ROOT / "scripts" / recipe), "--max_steps", "3", *flags],
        env=os.environ | {name: str(value) for name, value in settings.items()},
        cwd=world,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-1000:]
    (log,) = [path.read_text() for path in (world / "logs" / output.name).iterdir()]
    assert "step 3/3" in log
    assert "visual_tokens_mean" in log
    assert "\r" not in log  # of a progress bar
    assert "ask it: llava ask --model-path " in log
    return output


@pytest.fixture(scope="module")
def projector(world: Path) -> Path:
    """What the first recipe leaves for the others."""
    output = run("v1_5/pretrain.sh", world, DATA="captions.json")
    assert {"config.json", "mm_projector.bin"} <= {path.name for path in output.iterdir()}
    return output / "mm_projector.bin"


def test_the_small_pretraining_gives_a_projector(world: Path):
    output = run("pretrain.sh", world, DATA="captions.json")
    assert (output / "mm_projector.bin").is_file()


@pytest.mark.parametrize(
    ("recipe", "variables"),
    [
        ("v1_5/finetune.sh", {}),
        ("finetune_8gpu_TRIM.sh", {"ZERO": ZERO3_OFFLOAD}),
        ("v1_5/finetune_lora.sh", {}),
        ("finetune_qlora.sh", {}),
        ("finetune.sh", {}),
        ("finetune_lora.sh", {}),
        ("finetune_full_schedule.sh", {}),
        ("finetune_sqa.sh", {}),
        ("v1_5/finetune_task.sh", {"MODEL": LLAVA, "VISION_TOWER": ""}),
        ("v1_5/finetune_task_lora.sh", {"MODEL": LLAVA, "VISION_TOWER": ""}),
    ],
)
def test_what_a_recipe_trained_answers(
    world: Path, projector: Path, recipe: str, variables: dict[str, object]
):
    is_task = "task" in recipe
    output = run(recipe, world, PROJECTOR="" if is_task else projector, **variables)
    reduction = json.loads((output / "config.json").read_text())["mm_vision_token_reduce_func"]
    # A task continues as its base was trained; otherwise the recipe says what is trained.
    assert reduction == ("TRIM:-1" if is_task or "TRIM" in recipe else None)
    # An adapter's config names the base that it goes with.
    assistant = Assistant.load(str(output))
    picture = Image.open(next((world / "pictures").glob("*.jpg")))
    answer = assistant.answer("What is the color of the star?", picture)
    assert 1 <= answer.cost.visual_tokens <= answer.cost.patches == 256
    assert (answer.cost.visual_tokens == 256) is (reduction is None)
