"""``llava eval``, which is ``python -m llava.eval``: list, check, report, a benchmark, or all of them."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import UserError
from llava.options import (
    CommandParser,
    add_engine_options,
    add_model_options,
    load_assistant,
    name_of_model,
    positive,
    without_idle_top_p,
)
from llava.utils import printable, setup_logging

if TYPE_CHECKING:
    from llava.assistant import Assistant
    from llava.eval.benchmark import Benchmark
    from llava.eval.evaluate import Choices
    from llava.eval.processes import Processes

logger = logging.getLogger(__name__)

ALL = "all"
NOT_IN_ALL = ("qbench",)  # by name only, as the published driver has twelve
RESULTS = Path("results")
LONGEST_NAME = 128
NAME = re.compile(rf"(?![.-])[^/\\\x00-\x1f\x7f]{{1,{LONGEST_NAME}}}")
GENERATION_OPTIONS: dict[str, Callable[[str], float]] = {
    **{"max_new_tokens": positive, "num_beams": positive, "temperature": float, "top_p": float},
    "seed": int,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of ``llava eval``."""
    from llava.eval.benchmarks import BENCHMARKS
    from llava.eval.data_check import DATA
    from llava.eval.report import add_report_arguments

    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="command", required=True, parser_class=CommandParser
    )
    commands.add_parser("list", help="print the benchmarks and what each needs")
    check = commands.add_parser("check", help="say which benchmarks are in place and what is missing")
    check.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    add_report_arguments(commands.add_parser("report", help="compare results: table, differences, curve"))
    for name, title in ((ALL, "all benchmarks that are in place"), *((b.name, b.title) for b in BENCHMARKS)):
        _add_run_arguments(commands.add_parser(name, help=title, description=f"Run {title}."), name)


def run(options: argparse.Namespace) -> int | None:
    """Do what the command line says.

    Raises:
        UserError: If a setting or a file does not serve.
    """
    from llava.eval.benchmarks import BENCHMARKS
    from llava.eval.data_check import describe_needs, describe_place
    from llava.eval.report import run_report

    if options.command == "list":
        print("\n".join(map(describe_needs, BENCHMARKS)))
        return None
    if options.command == "check":
        print("\n".join(describe_place(benchmark, options.data) for benchmark in BENCHMARKS))
        return None
    if options.command == "report":
        run_report(options)
        return None
    return _run_benchmarks(options)


def _add_run_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    from llava.eval.data_check import DATA

    group = parser.add_argument_group("evaluation")
    group.add_argument("--data", type=Path, default=DATA, help=f"folder of all benchmarks (default: {DATA})")
    group.add_argument("--id", help="names answers and results (default: the model's name and reduction)")
    group.add_argument(
        "--results-folder",
        type=Path,
        default=RESULTS,
        help=f"gets the results; those of miniatures go below it (default: {RESULTS})",
    )
    group.add_argument(
        "--results-file", type=Path, help="default: <id>.txt in that folder; JSON goes beside it"
    )
    if name == ALL:
        group.add_argument("--only", nargs="+", metavar="NAME", help="only these benchmarks")
    else:
        group.add_argument("--split", help="default: the one that LLaVA reports")
    group.add_argument("--limit", type=positive, metavar="N", help="ask only the first N questions")
    group.add_argument("--batch-size", type=positive, metavar="B", help="default: by the free memory")
    group.add_argument(
        "--judge-model",
        metavar="NAME",
        help="model that scores MM-Vet and LLaVA-Bench, at OPENAI_BASE_URL with OPENAI_API_KEY",
    )
    answers = parser.add_argument_group("answer (default: as the benchmark has it, greedy)")
    for option, kind in GENERATION_OPTIONS.items():
        answers.add_argument(f"--{option.replace('_', '-')}", type=kind, metavar="X")
    add_model_options(parser)
    add_engine_options(parser)


def _run_benchmarks(options: argparse.Namespace) -> int:
    """Run one benchmark, or several with one model; of several, one that fails does not end the others.

    Returns:
        An exit code: not 0 if a benchmark, or every question of one, has failed.
    """
    from llava.eval.evaluate import BUNDLED, NEEDS_JUDGE, evaluate, summarize
    from llava.eval.processes import launched_processes

    setup_logging(logging.WARNING)
    chosen = _choose_benchmarks(options)
    choices = _read_choices(options)
    failed = False
    with launched_processes() as processes:
        if options.model_path is None and processes.is_first:
            logger.warning("%s answers; --model-path names another", BUNDLED)
        assistant = load_for(options, processes)
        for benchmark in chosen:
            try:
                result = evaluate(benchmark, assistant, choices, processes)
            except UserError as error:
                if len(chosen) == 1:
                    raise
                logger.error("%s: %s", benchmark.name, error)
                failed = True
                continue
            if result is not None:
                print(printable(summarize(result)), flush=True)
                failed |= result["failures"] == result["questions"]
                failed |= isinstance(result["judge"], str) and result["judge"] != NEEDS_JUDGE
    return int(failed)


def _choose_benchmarks(options: argparse.Namespace) -> list[Benchmark]:
    """Return the benchmarks that are to be run, of all of them those that are in place.

    Raises:
        UserError: If one that was named is not in place, or none is.
    """
    from llava.eval.benchmarks import BENCHMARKS
    from llava.eval.data_check import choose_split, describe_place, missing_of, require_data

    by_name = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    if options.command != ALL:
        benchmark = by_name[options.command]
        require_data(benchmark, options.data, choose_split(benchmark, options.split, options.data))
        return [benchmark]
    names = options.only or [name for name in by_name if name not in NOT_IN_ALL]
    if unknown := [name for name in names if name not in by_name]:
        raise UserError(f"there is no benchmark {unknown[0]!r}; accepted: {', '.join(by_name)}")
    absent = [
        name
        for name in names
        if missing_of(by_name[name], options.data, choose_split(by_name[name], None, options.data))
    ]
    if len(absent) == len(names):
        raise UserError(
            f"no benchmark is in place in {options.data}; playground/data/README.md says where to get them, "
            "and `python -m playground.shapes.make_benchmarks --output FOLDER` makes miniatures for --data"
        )
    for name in absent:
        logger.warning("%s", describe_place(by_name[name], options.data))
    return [by_name[name] for name in names if name not in absent]


def _read_choices(options: argparse.Namespace) -> Choices:
    """Return what the command line decides, after making sure that the results can be written.

    Raises:
        UserError: If they cannot, or a judge is named that cannot be asked.
    """
    from llava.engine.base import Generation
    from llava.eval.data_check import is_miniature
    from llava.eval.evaluate import Choices
    from llava.eval.files import explaining_writes, read_text
    from llava.eval.judge import Judge

    run_id = options.id or default_id(options.model_path, options.token_reduction)
    if not NAME.fullmatch(run_id):
        raise UserError(
            f"--id is {run_id!r:.120}; accepted: a name for files, of at most {LONGEST_NAME} characters, "
            "without / and \\, and without a dot or a dash in front"
        )
    folder = options.results_folder / "miniatures" if is_miniature(options.data) else options.results_folder
    results_file = options.results_file or folder / f"{run_id}.txt"
    with explaining_writes(results_file):
        results_file.parent.mkdir(parents=True, exist_ok=True)
        results_file.open("a").close()
    read_text(results_file)  # which gets the scores at the end
    given = {name: getattr(options, name) for name in GENERATION_OPTIONS}
    generation = without_idle_top_p({name: value for name, value in given.items() if value is not None})
    Generation(**generation)  # refuses what no model can do before one is loaded
    return Choices(
        data=options.data,
        run_id=run_id,
        model_path=options.model_path,
        results_file=results_file,
        split=getattr(options, "split", None),
        template=options.conv_mode,
        generation=generation,
        batch_size=options.batch_size,
        limit=options.limit,
        judge=Judge.from_environment(options.judge_model) if options.judge_model else None,
    )


def default_id(model_path: str | None, token_reduction: str | None) -> str:
    """Return a name for a run: that of the model and, if it was given, of the reduction behind an ``@``.

    No name of a model has an ``@`` left, so that ``llava-shapes`` with ``none`` is not ``llava-shapes-none``.
    """
    parts = [name_of_model(model_path), *([token_reduction] if token_reduction is not None else [])]
    return "@".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)


def load_for(options: argparse.Namespace, processes: Processes) -> Assistant:
    """Load the model, on the device of this process where there are several."""
    if processes.count > 1 and options.engine == "vllm":
        raise UserError(
            f"{processes.count} processes were launched; vLLM uses several devices from one, with "
            "--tensor-parallel-size"
        )
    if options.device is None:
        options.device = processes.device()
    return load_assistant(options)
