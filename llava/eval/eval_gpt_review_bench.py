"""LLaVA's ``python -m llava.eval.eval_gpt_review_bench``: a judge compares two files of answers."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llava.errors import UserError
from llava.eval.answers import read_answers
from llava.eval.benchmark import Response
from llava.eval.benchmarks.llava_bench import REVIEWING, RULES, Sources, load_questions
from llava.eval.files import has_error
from llava.eval.judge import Judge
from llava.eval.reviews import review
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error, printable, refuse_overwriting

JUDGE_MODEL = "gpt-4-0613"  # TRIM's, whose numbers are to be compared with


def read_responses(sources: Sources, answers_file: Path) -> list[Response]:
    """Read the answers that are compared with the reference's; one that failed says so.

    Raises:
        UserError: If a file is missing or malformed, or a question has no answer.
    """
    questions = load_questions(sources, image_folder=Path())
    answers = read_answers(answers_file, [question.id for question in questions], sources.questions)
    responses = []
    for question in questions:
        if (answer := answers.get(str(question.id))) is None:
            raise UserError(f"{sources.questions}: question {question.id} has no answer in {answers_file}")
        ids = (question.target.answer_ids[0], answer.get("answer_id"))
        target = replace(question.target, answer_ids=ids)
        error = "no answer" if has_error(answer) else None
        responses.append(Response(replace(question, target=target), answer["text"], error))
    return responses


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command on the arguments of a command line.

    Raises:
        UserError: If a file is missing, malformed or cannot be written, or the judge leaves reviews out.
    """
    options = _parser().parse_args(argv)
    reference, candidate = options.answer_list
    sources = Sources(options.question, options.context, reference, options.rule)
    refuse_overwriting(
        "--output", options.output, options.question, options.context, reference, candidate, options.rule
    )
    responses = read_responses(sources, candidate)
    judge = Judge.from_environment(options.judge_model)
    reviews = review(judge, replace(REVIEWING, max_tokens=options.max_tokens), responses, options.output)
    failed = sum(response.error is not None for response in responses)
    print(printable(f"{len(reviews.marks) - failed} reviews by {reviews.judge} in {options.output}"))
    if failed:
        print(f"{failed} answers failed and were not sent; summarize_gpt_review leaves them out")
    if reviews.failures:
        raise UserError(
            f"{reviews.failures} of {len(responses)} answers have got no review; run again to ask for them"
        )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m llava.eval.eval_gpt_review_bench",
        description="Have a judge compare answers with those of a reference, for summarize_gpt_review. "
        "The judge is at OPENAI_BASE_URL, with OPENAI_API_KEY.",
    )
    parser.add_argument("-q", "--question", type=Path, required=True, help="questions.jsonl")
    parser.add_argument("-c", "--context", type=Path, required=True, help="context.jsonl")
    parser.add_argument(
        *("-a", "--answer-list"),
        type=Path,
        nargs=2,
        required=True,
        metavar=("REFERENCE", "ANSWERS"),
        help="answers of the reference, such as answers_gpt4.jsonl, and those to rate",
    )
    parser.add_argument("-r", "--rule", type=Path, default=RULES, help="how to rate (default: as built in)")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file of reviews; resumed")
    parser.add_argument(
        "--max-tokens", type=positive, default=REVIEWING.max_tokens, metavar="N", help="of a review"
    )
    parser.add_argument("--judge-model", default=JUDGE_MODEL, metavar="NAME", help=f"default: {JUDGE_MODEL}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
