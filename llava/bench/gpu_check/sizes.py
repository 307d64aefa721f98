"""How much the parts do: the proportions of real models on a GPU, or the same code on toys in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from llava.bench.model_sizes import LANGUAGE_MODELS, TINY_CLIP, TINY_LANGUAGE_MODEL, VIT_L_14_336


@dataclass(frozen=True, slots=True)
class Size:
    """Proportions and numbers of all parts.

    Attributes:
        clip: Arguments of `CLIPConfig` for random weights.
        language_models: Arguments of `LlavaConfig` by name; the first is also trained and loaded.
        batches: Of inference.
        repeats: Measured rounds, after one to warm up.
        calls: Of the reducer, one after the other, per round.
        new_tokens: Of an answer.
        pictures: Of which rounding is counted, with three questions each.
        questions: That the bundled model is asked.
        rank: Of LoRA.
        text_tokens: Of a training sample, beside its image.
        copy_mib: Of the copy whose rate is measured.
        matrix_side: Of the matrices whose product's rate is measured.
        threads: Of what the CPU computes; a small model gains nothing from many.
        patience: What the parts' time limits are multiplied with.
    """

    clip: dict
    language_models: dict[str, dict[str, int]]
    batches: tuple[int, ...]
    repeats: int
    calls: int
    new_tokens: int
    pictures: int
    questions: int
    rank: int
    text_tokens: int
    copy_mib: int
    matrix_side: int
    threads: int
    patience: int

    @property
    def first_language_model(self) -> dict[str, int]:
        """The proportions that are also trained and loaded."""
        return next(iter(self.language_models.values()))


FULL = Size(
    clip=VIT_L_14_336,
    language_models={name: LANGUAGE_MODELS[name] for name in ("7b", "13b")},
    batches=(1, 8, 32),
    repeats=3,
    calls=50,
    new_tokens=12,
    pictures=32,
    questions=2400,
    rank=128,
    text_tokens=60,
    copy_mib=1024,
    matrix_side=8192,
    threads=4,
    patience=1,
)

TINY = Size(
    clip=TINY_CLIP,
    language_models={"tiny": TINY_LANGUAGE_MODEL},
    batches=(1, 2),
    repeats=1,
    calls=2,
    new_tokens=3,
    pictures=2,
    questions=24,
    rank=4,
    text_tokens=30,
    copy_mib=8,
    matrix_side=256,
    threads=1,
    patience=10,  # whatever else the machine does, nothing fails for being slow
)

SIZES = {"tiny": TINY, "full": FULL}
