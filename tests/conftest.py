"""The tiny reference checkpoint, its pictures and the published code's answers about them."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

# No test may reach a model hub; this must be set before huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

GOLDEN = Path(__file__).parent / "golden"
TINY_LLAVA = GOLDEN / "llava-v1.5-tiny"
TINY_CLIP = GOLDEN / "clip-vit-tiny-patch14-336"
# Sizes for `write_random_clip`, where any CLIP will do.
TINY_CLIP_SIZES = {
    "projection_dim": 16,
    "vision_config": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"image_size": 56, "patch_size": 14, "projection_dim": 16},
    },
    "text_config": {
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599, "projection_dim": 16},
    },
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    left_out = [item for item in items if item.get_closest_marker("gpu")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def count_encodings(assistant: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of images at every run of a model's vision encoder."""
    encoded: list[int] = []
    assistant.features.clear()
    tower = assistant.model.get_vision_tower()
    look = tower.look

    def count(pixels: torch.Tensor, *wanted: Any) -> Any:
        encoded.append(len(pixels))
        return look(pixels, *wanted)

    monkeypatch.setattr(tower, "look", count)
    return encoded


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The tiny models gain nothing from threads, and tests may run side by side.
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    # A shell's background job ignores SIGINT, and so would the programs that tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def reference() -> list[dict[str, Any]]:
    """Cases of the published code, in the order of `tests/golden/README.md`."""
    return json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Arrays of the published code."""
    return load_file(GOLDEN / "golden.safetensors")


@pytest.fixture(scope="session")
def pictures() -> dict[str, Image.Image]:
    """The reference pictures by file name, in RGB."""
    return {path.name: Image.open(path).convert("RGB") for path in sorted(GOLDEN.glob("img*.png"))}


@pytest.fixture(scope="session")
def loaded() -> tuple[Any, Any, Any, int]:
    """The tiny checkpoint as LLaVA's callers load it: tokenizer, model, image processor, context length.

    Shared: a test that changes the reduction sets it back with `reduction`.
    """
    from llava.model.builder import load_pretrained_model

    return load_pretrained_model(str(TINY_LLAVA), None, "llava-v1.5-tiny", device="cpu")


@pytest.fixture
def reduction(loaded: tuple[Any, Any, Any, int]) -> Any:
    """Set the reduction of the shared model for one test."""
    yield loaded[1].set_token_reduction
    loaded[1].set_token_reduction("none")


@pytest.fixture
def checkpoint_copy(tmp_path: Path) -> Callable[..., Path]:
    """Copy the tiny checkpoint and its CLIP side by side, with changed config keys, and return the copy."""

    def copy(**changes: Any) -> Path:
        shutil.copytree(TINY_CLIP, tmp_path / TINY_CLIP.name)
        folder = shutil.copytree(TINY_LLAVA, tmp_path / TINY_LLAVA.name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        return folder

    return copy


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniatures of all benchmarks; tests that answer them name runs of their own."""
    from playground.shapes.make_benchmarks import make

    folder = tmp_path_factory.mktemp("miniatures")
    make(folder)
    return folder
