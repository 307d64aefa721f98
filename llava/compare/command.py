"""``llava compare``: every method at every budget, on the same held-out questions."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from llava.errors import UserError
from llava.options import add_model_options, load_assistant, positive
from llava.utils import setup_logging

BUDGETS = (16, 32, 64, 128, 192)
QUESTIONS, BATCH_SIZE = 800, 32
RESULTS = Path("results/compare")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``llava compare``."""
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--methods", nargs="+", metavar="NAME", help="default: all that `llava reducers` lists"
    )
    group.add_argument(
        "--budgets",
        type=_budgets,
        default=BUDGETS,
        metavar="K,...",
        help="visual tokens (default: 16,32,64,128,192)",
    )
    group.add_argument(
        "--also", nargs="+", default=[], metavar="SPEC", help="further settings, such as TRIM:-1"
    )
    group.add_argument(
        "--questions",
        type=positive,
        default=QUESTIONS,
        metavar="N",
        help=f"held-out questions (default: {QUESTIONS})",
    )
    group.add_argument(
        "--batch-size", type=positive, default=BATCH_SIZE, metavar="B", help=f"default: {BATCH_SIZE}"
    )
    group.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        help=f"gets the outcome of each setting, and the tables (default: {RESULTS})",
    )
    add_model_options(parser, with_reduction=False)


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
    from llava.compare.asking import run_settings, shapes_questions
    from llava.compare.tables import as_csv, as_markdown, draw
    from llava.eval.files import explaining_writes, write_text
    from llava.eval.provenance import code_digest, digest_of, settings_of

    setup_logging(logging.WARNING)
    settings = chosen_settings(options)
    questions = shapes_questions(options.questions)
    with explaining_writes(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    assistant = load_assistant(options)
    asked = digest_of([[one.text, one.answer] for one in questions])
    place = {"device": str(assistant.encoder.device), "code": code_digest(), "questions": asked}
    key = {name: value for name, value in settings_of(assistant).items() if name != "reduction"} | place
    outcomes = []
    for outcome in run_settings(assistant, settings, questions, options.out, key, options.batch_size):
        shown = outcome.error or f"{100 * outcome.accuracy:.1f}% at {outcome.mean_tokens:.1f} tokens"
        print(f"{outcome.setting}: {shown}", flush=True)
        outcomes.append(outcome)
    table = as_markdown(outcomes)
    write_text(options.out / "comparison.md", table + "\n")
    write_text(options.out / "comparison.csv", as_csv(outcomes))
    drawn = draw(outcomes, options.out / "comparison.png")
    print(f"\n{table}\n\nwritten: {options.out / 'comparison'}.md, .csv" + " and .png" * drawn)


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
