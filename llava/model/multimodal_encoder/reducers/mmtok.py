"""MMTok (arXiv:2508.18264, ICLR 2026): coverage of the question's words and of the image itself.

Every content word, and every patch, spreads a weight of 1 over the patches that are similar to it. Patches
are picked whose weights together cover words and patches best, the image counting half as much as the words.

Shapes: N patches, m words, D width of the tower, D' width of the language model, k patches that stay.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from llava.constants import OPTION_LETTER, SHORT_ANSWER
from llava.model.multimodal_encoder.reducers.base import ImageInputs, Selection, cosine
from llava.model.multimodal_encoder.reducers.coverage import pick_coverage

WORD_TEMPERATURE = 0.02
PATCH_TEMPERATURE = 0.2
IMAGE_SHARE = 0.5
"""What covering the whole image is worth, where covering all words is worth 1."""

FUNCTION_WORDS = {
    *("a", "an", "the", "and", "or", "but", "if", "then", "than", "so"),
    *("i", "you", "he", "she", "it", "we", "they", "my", "your", "his", "her", "its", "our", "their"),
    *("am", "is", "are", "was", "were", "be", "been", "being", "do", "does", "did", "has", "have", "had"),
    *("what", "which", "who", "whom", "whose", "where", "when", "why", "how"),
    *("to", "at", "for", "from", "with", "by", "as"),
    *("answer", "question", "please"),
}


def content_words(question: str) -> list[str]:
    """Return the words of a question that say what to look for, in order, with repeats.

    The instructions of benchmarks about the form of an answer are left out, and so are function words,
    whatever their case. A question of nothing else keeps all its words.

    The authors' list of 47 words is not reproduced. Ours agrees with what their code finds in the questions
    of its golden answers: articles, "and", "if", "then", "I", "you", "it", "is", "are", "does", "what",
    "which", "to", "at" and "answer" go; "of", "in", "on", "near", "before", "this", "there", "all", "one",
    "them", "me" and "would" stay. What words of the same kinds do is our choice.
    """
    for instruction in (SHORT_ANSWER, OPTION_LETTER):
        question = question.replace(instruction, "")
    words = re.findall(r"\w+", question)
    return [word for word in words if word.lower() not in FUNCTION_WORDS] or words


def what_to_cover(patches: Tensor, projected: Tensor, words: Tensor) -> Tensor:
    """Say how well each patch covers each word, and each patch.

    Args:
        patches: Hidden states, (N, D).
        projected: The same behind the projector, (N, D').
        words: The language model's embeddings of the words, (m, D'); m may be 0.

    Returns:
        float32 (m + N, N); the rows of words sum to 1 in all, those of patches to half as much.
    """
    by_words = (cosine(words, projected) / WORD_TEMPERATURE).softmax(dim=-1) / len(words)
    by_patches = (cosine(patches) / PATCH_TEMPERATURE).softmax(dim=-1) / len(patches)
    return torch.cat([by_words, IMAGE_SHARE * by_patches])


@dataclass(frozen=True, slots=True)
class MMTok(Selection):
    """``MMTok:k``: patches that cover the question's words and the image, none of its padding."""

    name: ClassVar[str] = "MMTok"
    paper: ClassVar[str] = "arXiv:2508.18264 (ICLR 2026)"
    needs_patches: ClassVar[bool] = True
    needs_words: ClassVar[bool] = True
    needs_projected: ClassVar[bool] = True
    needs_padding: ClassVar[bool] = True

    def pick(self, image: ImageInputs, count: int) -> Tensor:
        """Return k of the N patches, (k,); padding is kept only where nothing else is left."""
        rows = what_to_cover(image.patches, image.projected(), image.words())
        return pick_coverage(rows, count, candidates=~image.in_padding())
