"""``llava compare``: every method at every budget, on the same questions."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.errors import UserError
from llava.eval.command import default_id, load_for
from llava.options import add_engine_options, add_model_options, name_of_model, positive
from llava.utils import printable, setup_logging

BUDGETS = (16, 32, 64, 128, 192)
RESULTS = Path("results/compare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``llava compare``."""
    from llava.eval.data_check import DATA

    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--methods", nargs="+", metavar="NAME", help="default: all that `llava reducers` lists"
    )
    group.add_argument(
        "--budgets",
        type=_budgets,
        default=BUDGETS,
        metavar="K,...",
        help="k of NAME:k, as `llava reducers` tells it (default: 16,32,64,128,192)",
    )
    group.add_argument(
        "--also", nargs="+", default=[], metavar="SPEC", help="further settings, such as TRIM:-1"
    )
    group.add_argument(
        "--on",
        nargs="+",
        default=["shapes"],
        metavar="BENCHMARK",
        help="shapes, hard-shapes, or benchmarks that `llava eval list` names (default: shapes)",
    )
    group.add_argument(
        "--without-image",
        action="store_true",
        help="also ask all questions without their images: what guessing is worth",
    )
    group.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    group.add_argument(
        "--questions",
        type=positive,
        metavar="N",
        help="ask the first N of each (default: 800 of shapes, all 4,000 of hard-shapes, all of a benchmark)",
    )
    group.add_argument("--batch-size", type=positive, metavar="B", help="default: by the free memory")
    group.add_argument(
        "--out",
        type=Path,
        help=f"gets answers and tables; run again to go on (default: {RESULTS}/MODEL)",
    )
    add_model_options(parser, with_reduction=False)
    add_engine_options(parser)


def _budgets(text: str) -> tuple[int, ...]:
    """Read numbers of visual tokens, with commas between them."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 2:  # as a setting, 1 is a share: everything
        raise argparse.ArgumentTypeError(
            f"{text!r} are no budgets; accepted: whole numbers above 1, such as 16,64"
        )
    return found


def run(options: argparse.Namespace) -> None:
    """Compare.

    Raises:
        UserError: If a method is not known, or the model or the questions cannot be had.
    """
    from llava.bench.machine import card_name
    from llava.compare.asking import NO_IMAGE, Outcome, answers_file, ask_with
    from llava.compare.subjects import load_subjects
    from llava.compare.tables import COMPARISON, Table, write_tables
    from llava.eval.evaluate import BUNDLED
    from llava.eval.files import explaining_writes
    from llava.eval.processes import launched_processes
    from llava.eval.runner import Plan

    setup_logging(logging.WARNING)
    options.out = options.out or RESULTS / default_id(options.model_path, None)
    settings = chosen_settings(options) + [NO_IMAGE] * options.without_image
    subjects = load_subjects(options.on, options.data, options.questions)
    with explaining_writes(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    with launched_processes() as processes:
        assistant = load_for(options, processes)
        found: dict[str, list[Outcome]] = {subject.name: [] for subject in subjects}
        for subject in subjects:
            for setting in settings:
                plan = Plan(
                    label=f"{subject.name} {setting}",
                    answers_file=answers_file(options.out / subject.name, setting),
                    model_id=name_of_model(options.model_path),
                    template=options.conv_mode or subject.benchmark.template,
                    generation=subject.benchmark.generation,
                    batch_size=options.batch_size,
                    limit=subject.limit,
                    option="--out",
                    reduction="none" if setting == NO_IMAGE else setting,
                )
                outcome = ask_with(setting, assistant, subject, plan, processes)
                if outcome is not None:
                    found[subject.name].append(outcome)
    if not processes.is_first:
        return
    model = options.model_path or BUNDLED
    where = f"{card_name(assistant.encoder.device)}, {str(assistant.model.dtype).removeprefix('torch.')}"
    tables = [
        Table(subject.benchmark, found[subject.name], f"{subject.describe()}, asked of {model} ({where}).")
        for subject in subjects
    ]
    text = write_tables(tables, options.out)
    written = options.out / COMPARISON
    print(printable(f"{text}\n\nwritten: {written}, and beside it CSV and, with matplotlib, curves"))


def chosen_settings(options: argparse.Namespace) -> list[str]:
    """Return the settings, each once and the baseline first.

    Raises:
        UserError: If a method is not known or takes no such budget.
    """
    from llava.model.multimodal_encoder.reducers.registry import REDUCERS, parse_reduction

    methods = options.methods or list(REDUCERS)
    if unknown := [name for name in methods if name not in REDUCERS]:
        raise UserError(f"there is no method {unknown[0]!r}; accepted: {', '.join(REDUCERS)}")
    settings = [
        "none",
        *(f"{name}:{budget}" for name in methods for budget in options.budgets),
        *options.also,
    ]
    return list(dict.fromkeys(str(parse_reduction(setting)) for setting in settings))
