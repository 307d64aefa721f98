"""The measuring of ``llava bench``: every setting once per round, so that whatever slows one slows all."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import torch

from llava.bench.floors import product_rate
from llava.bench.memory import PeakMemory
from llava.bench.report import ANSWER, DECODE, FIRST_TOKEN, Measured, Spread
from llava.bench.stages import FIRST_TOKEN as STAGES
from llava.bench.stages import Round, StageBench
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.model.multimodal_encoder.token_reduction import Reducer

# Sides of the matrices whose product's rate is measured, and how many fill the time of a fair measurement.
PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192, "mps": 4096}


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked for: a reduction, as ``mm_vision_token_reduce_func`` has it, at a batch size."""

    reduction: str
    batch: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """A round of one setting, and the most memory that it took, in MiB."""

    answers: Round
    peak_mib: float | None


def measure(
    bench: StageBench, settings: Sequence[Setting], repeats: int
) -> tuple[tuple[Measured, ...], Spread]:
    """Measure all settings, after one round to warm up.

    Args:
        bench: The model, with pictures for the largest batch.
        settings: In the order in which they take turns.
        repeats: Rounds that count.

    Returns:
        What was measured of each setting, and FLOPs per second of a large matrix product in the same dtype.
    """
    rates: list[float] = []
    seen: dict[Setting, list[_Seen]] = defaultdict(list)
    for number in range(repeats + 1):
        name = f"round {number} of {repeats}" if number else "round to warm up"
        print(f"{name} ...", file=sys.stderr, flush=True)
        product = _product_rate(bench)
        answered = {setting: _answer(bench, setting) for setting in settings}
        if number:
            rates.append(product)
            for setting, one in answered.items():
                seen[setting].append(one)
    rate = Spread.of(rates)
    return tuple(_sum_up(bench, setting, seen[setting], rate.median) for setting in settings), rate


def _product_rate(bench: StageBench) -> float:
    side = PRODUCT_SIDES[bench.device.type]
    return product_rate(bench.device, bench.model.dtype, side, repeats=1)


def _answer(bench: StageBench, setting: Setting) -> _Seen:
    """Answer once, and let nothing of it stay behind."""
    memory = PeakMemory(bench.device)
    answers = bench.answer(parse_reduction(setting.reduction), bench.preprocess(setting.batch))
    peak_mib = memory.mib()
    bench.engine.clear()
    return _Seen(answers, peak_mib)


def _sum_up(bench: StageBench, setting: Setting, seen: Sequence[_Seen], rate: float) -> Measured:
    rounds = [one.answers for one in seen]
    last = rounds[-1]
    milliseconds = {stage: Spread.of(one.laps[stage] for one in rounds) for stage in last.laps}
    milliseconds[FIRST_TOKEN] = Spread.of(one.first_token for one in rounds)
    milliseconds[DECODE] = Spread.of(one.decode_step for one in rounds)
    milliseconds[ANSWER] = Spread.of(one.whole_answer for one in rounds)
    flops = count_flops(bench, last, parse_reduction(setting.reduction))
    peaks = [one.peak_mib for one in seen if one.peak_mib is not None]
    return Measured(
        reduction=setting.reduction,
        batch=setting.batch,
        visual_tokens=last.visual_tokens,
        prompt_tokens=mean(last.lengths),
        milliseconds=milliseconds,
        flops=flops,
        rate_shares={
            what: count / (milliseconds[what].median / 1000 * rate) for what, count in flops.items()
        },
        cache_mib=last.cache_bytes / 2**20,
        peak_mib=max(peaks, default=None),
    )


def count_flops(bench: StageBench, seen: Round, reducer: Reducer) -> dict[str, float]:
    """Count the FLOPs of matrix products, of each stage that has any and of the sums of stages."""
    works = bench.works(seen, reducer)
    flops = {stage: works[stage].flops for stage in STAGES if stage in works and works[stage].flops}
    flops[FIRST_TOKEN] = sum(flops.values())
    flops[DECODE] = works["decode"].flops
    flops[ANSWER] = flops[FIRST_TOKEN] + len(seen.decode) * flops[DECODE]
    return flops


def held_mib(model: torch.nn.Module) -> float:
    """Return the MiB of all weights of a model."""
    return sum(weight.nbytes for weight in model.parameters()) / 2**20
