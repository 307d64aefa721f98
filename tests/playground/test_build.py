import subprocess
import sys
from pathlib import Path

import pytest

from playground.shapes.presets import PRESETS

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "playground" / "shapes" / "build.sh"


def test_help_names_the_presets():
    told = subprocess.run(["bash", BUILD, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in PRESETS)


@pytest.mark.slow
def test_smoke_build_makes_a_model_that_answers_and_is_not_made_twice(tmp_path):
    command = ["bash", BUILD, "--preset", "smoke", "--work", tmp_path]
    subprocess.run(command, check=True, timeout=600)
    ask = "import sys; from llava.main import main; sys.exit(main())"
    checkpoint = tmp_path / "checkpoints" / "llava-shapes"
    picture = ROOT / "images" / "shapes.png"
    arguments = ["ask", "--model-path", checkpoint, "--image", picture, "What color is the star?"]
    subprocess.run([sys.executable, "-c", ask, *arguments], check=True, cwd=ROOT, timeout=120)
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert again.count("there already") == 7
