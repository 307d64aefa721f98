"""VQA's measures of short answers, with LLaVA's names: normalized text, accuracy, ANLS; no BLEU-4."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from llava.errors import UserError

ANSWERS_PER_QUESTION = 10
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIODS = 32  # the published code passes a flag, whose value this is, as the number of periods to remove
# What VQA writes for an answer that lacks one of the apostrophes.
_WITH_APOSTROPHES = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
    they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _WITH_APOSTROPHES.split()
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # so it is in VQA's table


class EvalAIAnswerProcessor:
    """Normalizes answers as EvalAI's servers do, quirks included, so that old scores come out again."""

    def __call__(self, answer: str) -> str:
        """Return the answer in lower case, with neither articles nor punctuation, numbers as digits."""
        text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        text = text.replace("\n", " ").replace("\t", " ").strip()
        words = [_DIGITS.get(word, word) for word in self.process_punctuation(text).lower().split()]
        return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)

    def process_punctuation(self, text: str) -> str:
        """Remove punctuation at the edge of a word, and put a space for it inside of one."""
        result = text
        has_thousands = re.search(r"\d,\d", text) is not None
        for mark in _PUNCTUATION:
            is_at_edge = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if is_at_edge or has_thousands else " ")
        return re.sub(r"\.(?!\d)", "", result, count=_PERIODS)


class TextVQAAccuracyEvaluator:
    """VQA's soft accuracy: an answer that three of ten people gave is right (arXiv:1505.00468)."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def score(self, answer: str, references: Sequence[str]) -> float:
        """Return the accuracy of one answer, 0 to 1: the mean over leaving out each of ten references.

        Raises:
            UserError: If there are not ten references.
        """
        if len(references) != ANSWERS_PER_QUESTION:
            raise UserError(
                f"{len(references)} reference answers; VQA's accuracy needs {ANSWERS_PER_QUESTION}"
            )
        counts = Counter(self.answer_processor(reference) for reference in references)
        same = counts[self.answer_processor(answer)]
        others = ANSWERS_PER_QUESTION - same
        left_out = same * min(1.0, (same - 1) / 3) + others * min(1.0, same / 3)
        return left_out / ANSWERS_PER_QUESTION if same else 0.0

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        """Return the mean over items with ``pred_answer`` and ``gt_answers``, 0 to 1.

        Raises:
            UserError: If an item has not ten answers.
        """
        return _mean([self.score(item["pred_answer"], item["gt_answers"]) for item in pred_list])


class STVQAAccuracyEvaluator:
    """ST-VQA's accuracy: the normalized answer is one of the normalized references."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        """Return the mean over items with ``pred_answer`` and ``gt_answers``, 0 to 1."""
        normal = self.answer_processor
        return _mean(
            [
                float(normal(item["pred_answer"]) in [normal(reference) for reference in item["gt_answers"]])
                for item in pred_list
            ]
        )


class STVQAANLSEvaluator:
    """Average normalized Levenshtein similarity (arXiv:1905.13648); below 0.5 it counts as 0."""

    def get_anls(self, first: str, second: str) -> float:
        """Return the similarity of two texts, 0 or 0.5 to 1."""
        first, second = first.lower().strip(), second.lower().strip()
        longest = max(len(first), len(second))
        similarity = 1 - edit_distance(first, second) / longest if longest else 1.0
        return similarity if similarity >= 0.5 else 0.0

    def eval_pred_list(self, pred_list: Sequence[Mapping[str, Any]]) -> float:
        """Return the mean over items with ``pred_answer`` and ``gt_answers``, each by its nearest."""
        return _mean(
            [
                max(self.get_anls(item["pred_answer"], reference) for reference in item["gt_answers"])
                for item in pred_list
            ]
        )


def edit_distance(first: str, second: str) -> int:
    """Count the characters to insert, delete or replace to make one text the other (Levenshtein)."""
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
