"""What VQAv2, VizWiz and TextVQA share: ten people's answers to every question, and VQA's soft accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

from llava.constants import SHORT_ANSWER
from llava.errors import UserError
from llava.eval.benchmark import Mark, Response
from llava.eval.files import OBJECT, require_keys
from llava.eval.m4c_evaluator import (
    ANSWERS_PER_QUESTION,
    EvalAIAnswerProcessor,
    TextVQAAccuracyEvaluator,
)


def mark(response: Response) -> Mark:
    """Compare with what ten people said.

    Raises:
        UserError: If the question has not ten answers.
    """
    question = response.question
    points = TextVQAAccuracyEvaluator().score(response.text, question.target)
    return Mark(question.unit, points if response.error is None else 0.0, question.group)


def normal_answer(text: str) -> str:
    """Return an answer as it is submitted."""
    return EvalAIAnswerProcessor()(text)


def with_instruction(question: str) -> str:
    """Return a question as LLaVA-1.5 is asked for a short answer."""
    return f"{question}\n{SHORT_ANSWER}"


def require_ten(answers: Sequence[str], where: str) -> Sequence[str]:
    """Return people's answers to a question.

    Raises:
        UserError: If they are not ten.
    """
    if len(answers) != ANSWERS_PER_QUESTION:
        raise UserError(
            f"{where} has {len(answers)} answers; expected those of {ANSWERS_PER_QUESTION} people"
        )
    return answers


def peoples_answers(item: Mapping[str, Any], where: str) -> Sequence[str] | None:
    """Return the answers in an official annotation; None if they are not public.

    Raises:
        UserError: If they are malformed, or not ten.
    """
    answers = require_keys(item, ("answers?", "answer_type?"), where, answers=[OBJECT]).get("answers")
    if not answers:
        return None
    return require_ten([require_keys(answer, ("answer",), where)["answer"] for answer in answers], where)
