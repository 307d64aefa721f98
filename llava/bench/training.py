"""What a training step costs with and without token reduction: ``python -m llava.bench.training``.

One sample per step, LoRA on a language model with random weights, the optimizer's step included. The
reductions take turns within one run, so that what else the machine does falls on all of them alike.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from llava.bench.model_sizes import LANGUAGE_MODELS, VIT_L_14_336
from llava.bench.random_llava import add_random_vision_tower, random_language_model
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.engine.stopwatch import Stopwatch
from llava.errors import UserError
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.placement import parse_device, parse_dtype
from llava.options import CommandParser, positive
from llava.train.lora import LoraSettings, add_lora
from llava.train.model_setup import TrainedParts, freeze
from llava.utils import exit_on_user_error

SUPERVISED_TOKENS = 20  # of the text: its end, where an answer stands


@dataclass(frozen=True, slots=True)
class Step:
    """What one training step took.

    Attributes:
        visual_tokens: Of its image.
        vision_ms: Tower with reduction, part of ``forward_ms``.
        forward_ms: From ids and pixels to the loss.
        backward_ms: Gradients.
        optimizer_ms: The weights' change.
        peak_mib: Most memory that the device held meanwhile; 0 where it does not count.
    """

    visual_tokens: float
    vision_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    peak_mib: float

    @property
    def milliseconds(self) -> float:
        """The whole step."""
        return self.forward_ms + self.backward_ms + self.optimizer_ms


class Trainee:
    """A model with an adapter, its optimizer, and steps to take on random images.

    Args:
        sizes: Of the language model.
        clip: Of CLIP.
        rank: Of the adapter.
        device: Where it learns.
        dtype: Of the frozen weights; the adapter is kept in float32, as training does.
        checkpointing: Whether activations are computed again for the gradients instead of being kept.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        clip: dict,
        *,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
        checkpointing: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = random_language_model(sizes, device, dtype)
        self.model.config.use_cache = False
        self.wrapped = add_lora(self.model, LoraSettings(rank=rank, alpha=2 * rank), base="random")
        if checkpointing:
            # transformers 5.24 has a new name for it, and warns of the old one.
            enable = getattr(self.model, "activation_checkpointing_enable", None)
            (enable or self.model.gradient_checkpointing_enable)()
            self.model.enable_input_require_grads()
        add_random_vision_tower(self.model, clip)
        freeze(self.model, TrainedParts(lora=True))
        self.model.get_model().detach_vision_tower()
        for parameter in self.model.get_model().mm_projector.parameters():
            parameter.data = parameter.data.float()
        trained = [parameter for parameter in self.wrapped.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
        self.device, self.dtype = device, dtype
        self.steps = 0
        self.wrapped.train()

    def step(self, reduction: str, text_tokens: int) -> Step:
        """Learn from a random image with ``text_tokens`` tokens of text, and return what it took."""
        tower = self.model.get_vision_tower()
        assert tower is not None
        self.model.set_token_reduction(reduction)
        seen: dict[str, Any] = {}
        vision = Stopwatch(self.device)
        patches, observers = (
            tower.vision_tower.vision_model.embeddings,
            self.model.prompt_encoder.observers,
        )
        hook = patches.register_forward_pre_hook(lambda *_: vision.lap() and None)
        observers.append(lambda images: seen.update(ms=vision.lap(), tokens=sum(images[0].crops.counts)))
        batch = self._batch(text_tokens, tower.config.image_size)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        watch = Stopwatch(self.device)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            loss = self.wrapped(**batch).loss
        forward = watch.lap()
        loss.backward()
        backward = watch.lap()
        self.optimizer.step()
        self.optimizer.zero_grad()
        optimizer = watch.lap()
        hook.remove()
        observers.pop()
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else 0.0
        return Step(seen["tokens"], seen["ms"], forward, backward, optimizer, peak)

    def _batch(self, text_tokens: int, side: int) -> dict[str, Any]:
        """Make a sample: ids and labels (1, L), pixels (1, 3, height, width), and a new question."""
        self.steps += 1
        ids = torch.randint(3, self.model.config.vocab_size, (1, text_tokens + 1), device=self.device)
        labels = ids.clone()
        labels[:, :-SUPERVISED_TOKENS] = IGNORE_INDEX
        ids[:, 1] = IMAGE_TOKEN_INDEX
        return {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": torch.ones_like(ids),
            "images": torch.randn(1, 3, side, side, device=self.device),
            "texts": [[f"What is the color of cat number {self.steps}?"]],
        }


def measure(
    step: Callable[[str, int], Step], reductions: Sequence[str], text_tokens: int, repeats: int
) -> dict[str, Step]:
    """Return the median of every figure per reduction, after one round to warm up."""
    rounds = [{name: step(name, text_tokens) for name in reductions} for _ in range(repeats + 1)][1:]
    fields = Step.__slots__
    return {
        name: Step(*(median(getattr(taken[name], field) for taken in rounds) for field in fields))
        for name in reductions
    }


def print_table(steps: dict[str, Step], text_tokens: int) -> None:
    """Print a line per reduction; the last column compares with the first line."""
    print(
        f"{'reduction':<12}{'visual':>8}{'vision':>10}{'forward':>10}{'backward':>10}{'optimizer':>11}"
        f"{'step':>10}{'tokens/s':>10}{'peak':>10}{'ratio':>8}"
    )
    first = next(iter(steps.values())).milliseconds
    for name, step in steps.items():
        speed = (step.visual_tokens + text_tokens) / step.milliseconds * 1000
        peak = f"{step.peak_mib:.0f} MiB" if step.peak_mib else "-"
        print(
            f"{name:<12}{step.visual_tokens:>8.0f}{step.vision_ms:>7.0f} ms{step.forward_ms:>7.0f} ms"
            f"{step.backward_ms:>7.0f} ms{step.optimizer_ms:>8.0f} ms{step.milliseconds:>7.0f} ms"
            f"{speed:>10.0f}{peak:>10}{step.milliseconds / first:>8.3f}"
        )


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Measure training steps with LoRA and print them."""
    parser = CommandParser(prog="python -m llava.bench.training", description=main.__doc__)
    parser.add_argument(
        "--size", choices=LANGUAGE_MODELS, default="1b", help="language model, random weights (default: 1b)"
    )
    parser.add_argument(
        "--token-reduction",
        nargs="+",
        default=["none", "TRIM:0.21"],
        help="reductions to compare; the first is the baseline (default: none TRIM:0.21)",
    )
    parser.add_argument("--rank", type=positive, default=128, help="of the adapter (default: 128)")
    parser.add_argument("--text-tokens", type=positive, default=60, help="beside the image (default: 60)")
    parser.add_argument(
        "--repeats", type=positive, default=3, help="measured rounds after one to warm up (default: 3)"
    )
    parser.add_argument("--device", help="cuda, mps or cpu (default: the best one of this machine)")
    parser.add_argument("--dtype", default="float32", help="of the frozen weights (default: float32)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.text_tokens <= SUPERVISED_TOKENS:
        raise UserError(f"--text-tokens is {options.text_tokens}; accepted: more than {SUPERVISED_TOKENS}")
    for reduction in options.token_reduction:
        parse_reduction(reduction)  # before minutes go into making a model
    device = parse_device(options.device)
    dtype = parse_dtype(options.dtype, device)
    trainee = Trainee(
        LANGUAGE_MODELS[options.size], VIT_L_14_336, rank=options.rank, device=device, dtype=dtype
    )
    steps = measure(trainee.step, options.token_reduction, options.text_tokens, options.repeats)
    if options.json:
        print(json.dumps({name: asdict(step) for name, step in steps.items()}))
        return
    print(f"LoRA r={options.rank}, {options.size}, {options.text_tokens} text tokens, {device}, {dtype}")
    print_table(steps, options.text_tokens)


if __name__ == "__main__":
    sys.exit(main())
