"""``llava bench``: what answers cost, stage by stage, with and without reduction."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from llava.bench.model_sizes import MODEL_SIZES
from llava.errors import UserError
from llava.options import add_model_options, name_of_model, positive

if TYPE_CHECKING:
    from PIL.Image import Image

    from llava.bench.measure import Setting
    from llava.bench.report import Measured, Report, Spread
    from llava.bench.stages import StageBench

REDUCTIONS = ("TRIM:-1", "TRIM:0.21", "TRIM:64", "Random:0.21")
BATCHES, GROWING_BATCHES = (1, 4), (1, 2, 4)
NOT_REPEATED = ("out", "compare", "module")  # of a command that does the same again
OF_CHECKPOINTS = ("model_path", "model_base", "vision_tower", "conv_mode", "load_8bit", "load_4bit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``llava bench``."""
    parser.add_argument("--random", choices=MODEL_SIZES, help="random weights of this size, no checkpoint")
    parser.add_argument(
        "--reductions",
        nargs="+",
        metavar="SPEC",
        help=f"what to compare with none, which always runs too (default: {' '.join(REDUCTIONS)})",
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=positive, metavar="N", help="default: 1 4; with --growth: 1 2 4"
    )
    parser.add_argument(
        "--growth", action="store_true", help="measure how cost grows with visual tokens and with the batch"
    )
    parser.add_argument(
        "--new-tokens", type=positive, default=16, metavar="N", help="of every answer (default: 16)"
    )
    parser.add_argument(
        "--repeats", type=positive, default=3, metavar="N", help="rounds after one to warm up (default: 3)"
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="ask about these (default: noise)")
    parser.add_argument("--question", help="ask this about every image (default: a new one for each)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write JSON, tables and a PNG there")
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A.json", "B.json"),
        help="measure nothing; show two results beside each other",
    )
    add_model_options(parser, with_reduction=False)


def run(options: argparse.Namespace) -> None:
    """Measure and print, or compare what was measured.

    Raises:
        UserError: If an option or the machine does not serve.
    """
    if options.compare:
        from llava.bench.compare import compare
        from llava.bench.report import read_report

        print(compare(*map(read_report, options.compare)), end="")
        return
    check(options)
    report = measured(options)
    from llava.bench.tables import render

    tables = render(report)
    print(tables, end="")
    if options.out is not None:
        write(report, tables, options.out)


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be measured or written, before minutes go into a model.

    Raises:
        UserError: If it cannot.
    """
    from llava.bench.pictures import picture_paths
    from llava.model.multimodal_encoder.reducers.registry import parse_reduction
    from llava.model.saving import check_output_folder

    given = [f"--{name.replace('_', '-')}" for name in OF_CHECKPOINTS if getattr(options, name)]
    if options.random and given:
        raise UserError(f"--random makes a model and {given[0]} is about a checkpoint; give one of them")
    if options.growth and options.reductions:
        raise UserError("--growth measures reductions of its own; leave out --reductions or --growth")
    if options.growth and len({1, *batch_sizes(options)}) == 1:
        raise UserError("--growth with --batch-sizes 1 has no line to fit; accepted: a number above 1 too")
    if options.new_tokens < 2:
        raise UserError("--new-tokens is 1; accepted: 2 or more, since the first one is not decoded")
    for reduction in options.reductions or ():
        parse_reduction(reduction)
    if options.images is not None:
        picture_paths(options.images)
    if options.out is not None:
        check_output_folder(options.out)


def batch_sizes(options: argparse.Namespace) -> list[int]:
    """Return the batch sizes, each once."""
    return list(dict.fromkeys(options.batch_sizes or (GROWING_BATCHES if options.growth else BATCHES)))


def measured(options: argparse.Namespace) -> Report:
    """Load or make the model and measure it.

    Raises:
        UserError: If it cannot be loaded, or memory does not suffice.
    """
    import torch

    from llava.bench.measure import measure
    from llava.bench.stages import StageBench
    from llava.bench.subject import load_subject, require_room

    batch = max(batch_sizes(options))
    assistant = load_subject(options)
    require_room(assistant, batch, options.new_tokens)
    bench = StageBench(assistant, pictures(options.images, batch), options.new_tokens, options.question)
    try:
        rows, rate = measure(bench, settings(options, bench), options.repeats)
    except torch.OutOfMemoryError as error:
        raise UserError("the device's memory does not suffice; try smaller --batch-sizes") from error
    return report_of(options, bench, rows, rate)


def pictures(folder: Path | None, count: int) -> list[Image]:
    """Return so many pictures: those of a folder, again from the first where it has fewer, or noise."""
    from llava.bench.pictures import picture_paths, random_pictures
    from llava.image_io import load_image

    if folder is None:
        return random_pictures(count)
    return [load_image(path) for path in islice(cycle(picture_paths(folder)), count)]


def settings(options: argparse.Namespace, bench: StageBench) -> list[Setting]:
    """Return what is measured, without reduction first."""
    from llava.bench.growth import growth_settings
    from llava.bench.measure import Setting
    from llava.bench.report import BASELINE

    batches = batch_sizes(options)
    if options.growth:
        return growth_settings(bench.encoder.tower.num_patches_per_side, batches)
    reductions = dict.fromkeys([BASELINE, *(options.reductions or REDUCTIONS)])
    return [Setting(reduction, batch) for batch in batches for reduction in reductions]


def report_of(
    options: argparse.Namespace, bench: StageBench, rows: Sequence[Measured], rate: Spread
) -> Report:
    """Put what was measured together with what it depends on."""
    import torch

    from llava.bench.machine import describe_machine
    from llava.bench.measure import held_mib
    from llava.bench.report import Report
    from llava.model.placement import choose_attention

    dtype = bench.model.dtype
    return Report(
        kind="growth" if options.growth else "answers",
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command_line(options),
        model=f"{options.random}, random weights" if options.random else name_of_model(options.model_path),
        dtype=str(dtype).removeprefix("torch."),
        attention=choose_attention(bench.device, dtype),
        threads=torch.get_num_threads(),
        machine=describe_machine(bench.device),
        new_tokens=options.new_tokens,
        repeats=options.repeats,
        flops_per_s=rate,
        tower_parameters=sum(weight.numel() for weight in bench.encoder.tower.parameters()),
        weights_mib=held_mib(bench.model),
        rows=tuple(rows),
    )


def command_line(options: argparse.Namespace) -> str:
    """Return the command that does the same again, without where its results go."""
    words = ["llava", "bench"]
    for name, value in vars(options).items():
        if name in NOT_REPEATED or value in (None, False):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(str, value if isinstance(value, (list, tuple)) else [value])
    return shlex.join(words)


def write(report: Report, tables: str, folder: Path) -> None:
    """Write a report, its tables and a picture of it into a folder, over nothing that is there.

    Raises:
        UserError: If they cannot be written.
    """
    from llava.bench.machine import slug
    from llava.bench.plots import draw
    from llava.bench.results import free_path, write_results

    parts = ["growth"] * (report.kind == "growth")
    parts += [report.model, report.dtype, report.machine["card"], report.date[:10]]
    path = free_path(folder, slug(" ".join(parts)))
    write_results(path, report.as_json(), tables)
    drawn = draw(report, path.with_suffix(".png"))
    print(f"\nwritten: {path}, .md" + " and .png" * drawn)
