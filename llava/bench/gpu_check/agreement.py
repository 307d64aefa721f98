"""The reference cases, the published code's answers on a tiny checkpoint, in each dtype of the device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from llava.assistant import Assistant
from llava.bench.gpu_check.parts import Row, SkippedError, UnmetError
from llava.bench.gpu_check.sizes import Size
from llava.bench.machine import ROOT
from llava.messages import Request
from llava.mm_utils import tokenizer_image_token

GOLDEN = ROOT / "tests" / "golden"
CHECKPOINT = GOLDEN / "llava-v1.5-tiny"
PAIRS = 5  # of an image and a question, which every reduction is asked about
DTYPES = ("float32", "float16", "bfloat16")
NEW_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one case agrees.

    Attributes:
        kept: Whether the same patches stay.
        counts: Whether there are as many visual tokens.
        ids: Whether the greedy answer is the same.
        logits: The largest difference of the next token's logits, relative to the largest logit.
    """

    kept: bool
    counts: bool
    ids: bool
    logits: float


def run(device: torch.device, size: Size) -> Iterator[Row]:
    """Compare all cases in each dtype.

    Raises:
        SkippedError: If the reference is not there.
        UnmetError: If a case disagrees in float32.
    """
    del size  # the cases are tiny already
    if not CHECKPOINT.is_dir():
        raise SkippedError("tests/golden is not there: it comes with a clone of the repository")
    differing = 0
    for dtype in DTYPES:
        cases = compare_cases(device, dtype)
        yield {
            "dtype": dtype,
            "cases": len(cases),
            **{name: sum(getattr(case, name) for case in cases) for name in ("kept", "counts", "ids")},
            "worst_logit_difference": max(case.logits for case in cases),
        }
        if dtype == "float32":
            differing = sum(not (case.kept and case.counts and case.ids) for case in cases)
    if differing:
        raise UnmetError(f"{differing} of the reference cases differ in float32")


def compare_cases(device: torch.device, dtype: str) -> list[Agreement]:
    """Run all cases in one dtype."""
    assistant = Assistant.load(str(CHECKPOINT), device=str(device), dtype=dtype, conv_mode="vicuna_v1")
    cases = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
    arrays = load_file(GOLDEN / "golden.safetensors")
    return [
        compare(assistant, case, arrays[f"logits/{case['reduce'] or 'none'}/{number % PAIRS}"])
        for number, case in enumerate(cases)
    ]


@torch.inference_mode()
def compare(assistant: Assistant, case: dict[str, Any], expected: Tensor) -> Agreement:
    """Compare one case of `tests/golden/cases.json`, and its last logits (V,)."""
    model, device = assistant.whole_model, assistant.encoder.device
    model.set_token_reduction(case["reduce"])
    image = Image.open(GOLDEN / case["image"]).convert("RGB")
    prompt = assistant.render(Request.ask(case["question"], image))
    ids = torch.tensor([tokenizer_image_token(prompt, assistant.tokenizer)], device=device)
    pixels = assistant.encoder.preprocess(image)
    tower = model.get_vision_tower()
    assert tower is not None
    tokens = tower.select(pixels, [case["question"]])
    everything = list(range(tower.num_patches))
    logits = model(ids, images=pixels).logits[0, -1].float().cpu()
    answer = model.generate(ids, images=pixels, do_sample=False, max_new_tokens=NEW_TOKENS)
    return Agreement(
        kept=tokens.kept[0].nonzero().flatten().tolist() == (case["kept"] or everything),
        counts=tokens.counts == (case["visual_tokens"],),
        ids=answer[0].tolist() == case["generated"][1:],
        logits=float((logits - expected).abs().max() / expected.abs().max()),
    )
