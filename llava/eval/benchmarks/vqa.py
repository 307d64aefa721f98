"""What VQAv2, VizWiz and TextVQA share: ten people's answers to every question, and VQA's soft accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.benchmark import SHORT_ANSWER, Mark, Response
from llava.eval.m4c_evaluator import EvalAIAnswerProcessor, TextVQAAccuracyEvaluator


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


def peoples_answers(item: Mapping[str, Any]) -> Sequence[str] | None:
    """Return the answers in an official annotation; None if they are not public."""
    answers = item.get("answers")
    return [answer["answer"] for answer in answers] if answers else None
