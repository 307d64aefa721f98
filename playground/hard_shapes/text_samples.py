"""Samples of the text pretraining: crowded scenes in words, with questions about them, as tokens.

A picture is one position per patch that shows a thing, whose embedding is the sum of those of several words:
color, shape, the character on it, the patch's row and column, how large the thing is, and whether this is
the patch at its center. That is as near as text comes to visual tokens, which carry all of that at once.
Rows, columns and sizes are words of their own (``ra`` to ``rx``, ``ca`` to ``cx``, ``sa`` to ``sh``), which
also stand in the listings that the projector is trained on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation
from llava.tokenizer import ids_and_spans
from llava.train.preprocess import supervised_tokens
from playground.hard_shapes.glyphs import CHARACTERS
from playground.hard_shapes.questions import KINDS, ask, ask_several, references
from playground.hard_shapes.scene import GRID, PATCH, SHOWN_SHARE, SIZES, TRAIN, Scene, center_patches
from playground.shapes.questions import SHORT_ANSWER, Question, describe
from playground.shapes.text_samples import NOTHING, caption, converse
from playground.shapes.world import COLORS, SHAPES, Thing, stream

ROW_WORDS = tuple(f"r{letter}" for letter in ascii_lowercase[:GRID])
COLUMN_WORDS = tuple(f"c{letter}" for letter in ascii_lowercase[:GRID])
SIZE_WORDS = tuple(f"s{letter}" for letter in ascii_lowercase[:8])
CENTER = "core"
DRILL_QUESTIONS = 16
KEYWORDS = {
    **{"color": "color", "shape": "shape", "presence": "there", "count": "count", "character": "read"},
    **{"size": "bigger", "left": "side", "right": "side", "above": "height", "below": "height"},
}
TURNS = 8
SHORT_KINDS = tuple(kind for kind in KINDS if kind != "description")

Patch = tuple[str, ...]
"""What a patch shows, in words."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence.

    Attributes:
        words: Tokens of every position, whose embeddings are added.
        labels: What to predict, `IGNORE_INDEX` where nothing is learned.
    """

    words: list[tuple[int, ...]]
    labels: list[int]


def size_word(side: float) -> str:
    """Return the word for how large a thing of so many pixels is."""
    smallest, largest = SIZES[0][0], SIZES[-1][1]
    share = math.log(side / smallest) / math.log(largest / smallest)
    return SIZE_WORDS[min(len(SIZE_WORDS) - 1, max(0, int(share * len(SIZE_WORDS))))]


def patch_words(scene: Scene) -> dict[int, tuple[int, Patch]]:
    """Return what each patch that shows a thing shows.

    Returns:
        By the patch's index in raster order: the thing's index, and the words.
    """
    shares = scene.coverage().reshape(len(scene.things), -1)
    front, shown = shares.argmax(axis=0), shares.max(axis=0) > SHOWN_SHARE
    centers = center_patches(scene.things, shares, np.arange(GRID * GRID))
    shown[centers] = True
    found = {}
    for patch in np.flatnonzero(shown).tolist():
        thing = scene.things[front[patch]]
        row, column = divmod(patch, GRID)
        words = [thing.color, thing.shape, ROW_WORDS[row], COLUMN_WORDS[column], size_word(thing.size)]
        if thing.character:
            words.append(thing.character)
        if centers[front[patch]] == patch:
            words.append(CENTER)
        found[patch] = int(front[patch]), tuple(words)
    return found


def kept_patches(scene: Scene, named: set[int] | None, rng: np.random.Generator) -> list[Patch]:
    """Return what is left of a picture in raster order, with some mistakes, and the merged rest at the end.

    Args:
        scene: What is in the picture.
        named: The things that the question names, of which most patches stay; None leaves all things.
        rng: Makes the mistakes.
    """
    shown = patch_words(scene)
    kept = []
    for patch in range(GRID * GRID):
        if patch in shown:
            thing, words = shown[patch]
            if named is None or rng.random() < (0.95 if thing in named else 0.04):
                kept.append(words)
        elif rng.random() < 0.01:
            kept.append((NOTHING, ROW_WORDS[patch // GRID], COLUMN_WORDS[patch % GRID]))
    return [*kept, (NOTHING,)]


def encode(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> Sample:
    """Turn a conversation into tokens, its image placeholder into one position per patch."""
    segments = conversation.segments()
    prompt = "".join(segment.text for segment in segments)
    ids, spans = ids_and_spans(prompt, tokenizer)
    words: list[tuple[int, ...]] = []
    labels: list[int] = []
    for token, is_learned in zip(ids, supervised_tokens(segments, spans), strict=True):
        if token == IMAGE_TOKEN_INDEX:
            words += [word_ids(patch, tokenizer) for patch in patches]
            labels += [IGNORE_INDEX] * len(patches)
        else:
            words.append((token,))
            labels.append(token if is_learned else IGNORE_INDEX)
    return Sample(words, labels)


def word_ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens of words, each of which is a single piece; of a digit, that behind its blank."""
    return tuple(tokenizer.convert_tokens_to_ids(word if word.isdigit() else f"▁{word}") for word in words)


def content_words(text: str) -> list[str]:
    """Return the colors, shapes and characters in a text, in its order."""
    found = []
    for word in re.findall(r"[A-Za-z]+|\d", text):
        singular = word.removesuffix("es") if word == "crosses" else word.removesuffix("s")
        if word in COLORS or word in SHAPES or word in CHARACTERS:
            found.append(word)
        elif singular in SHAPES:
            found.append(singular)
    return found


def keywords(scene: Scene, question: Question, rng: np.random.Generator) -> list[str]:
    """Say a question in keywords: what is asked, then what about."""
    if question.kind not in ("position", "size"):
        return [KEYWORDS[question.kind], *content_words(question.text.removesuffix(SHORT_ANSWER))]
    known = references(scene, rng)
    said = [KEYWORDS[question.answer if question.kind == "position" else "size"]]
    for index in question.named:
        own = [reference.words for reference in known if reference.thing == index]
        said += content_words(own[int(rng.integers(len(own)))])
    return said


def drill(scene: Scene, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Return a picture and short questions about it in keywords, each with its answer."""
    patches = kept_patches(scene, None, rng)
    words = [(int(tokenizer.bos_token_id),), *(word_ids(patch, tokenizer) for patch in patches)]
    labels = [IGNORE_INDEX] * len(words)
    for _ in range(DRILL_QUESTIONS):
        question = ask(scene, rng, SHORT_KINDS[int(rng.integers(len(SHORT_KINDS)))])
        asked = word_ids(keywords(scene, question, rng), tokenizer)
        (answer,) = word_ids((question.answer,), tokenizer)
        words += [*((word,) for word in asked), (answer,)]
        labels += [IGNORE_INDEX] * len(asked) + [answer]
    return Sample(words, labels)


def list_things(scene: Scene) -> str:
    """List the things of a scene with all that their patches carry, from top to bottom, in keywords."""
    return " , ".join(" ".join(_listed(thing)) for thing in scene.things)


def _listed(thing: Thing) -> list[str]:
    place = [ROW_WORDS[int(thing.y // PATCH)], COLUMN_WORDS[int(thing.x // PATCH)]]
    return [thing.color, thing.shape, *filter(None, [thing.character]), *place, size_word(thing.size)]


def make_sample(seed: int, form: str, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Return the sample of a seed.

    Args:
        seed: Of the scene and of the questions.
        form: ``drill`` for keywords, ``turns`` for several questions, ``single`` for one, ``caption`` for a
            description alone, ``listing`` for a listing alone.
        tokenizer: The language model's.
    """
    scene, rng = Scene.from_seed(seed), stream(seed, "words")
    if form == "drill":
        return drill(scene, rng, tokenizer)
    if form in ("caption", "listing"):
        text = describe(scene) if form == "caption" else list_things(scene)
        told = Question("", text, "description", ())
        return encode(caption(told), kept_patches(scene, None, rng), tokenizer)
    questions = (
        ask_several(scene, rng, TURNS, SHORT_KINDS)
        if form == "turns"
        else [ask(scene, rng, KINDS[int(rng.integers(len(KINDS)))])]
    )
    # Where only what is asked for is left there is nothing to look up, so most scenes stay whole.
    named = {index for question in questions for index in question.named}
    patches = kept_patches(scene, None if rng.random() < 0.6 else named, rng)
    return encode(converse(questions), patches, tokenizer)


def vocabulary_texts(count: int) -> list[str]:
    """Return everything that is said of the pictures, to learn a vocabulary from."""
    texts = []
    for seed in TRAIN[:count]:
        scene, rng = Scene.from_seed(seed), stream(seed, "words")
        prompt = converse([ask(scene, rng, kind) for kind in KINDS]).get_prompt()
        texts += prompt.replace(DEFAULT_IMAGE_TOKEN, NOTHING).replace("</s>", "\n").split("\n")
    alone = [*COLORS, *SHAPES, *CHARACTERS, *ROW_WORDS, *COLUMN_WORDS, *SIZE_WORDS, CENTER, NOTHING]
    alone += [*KEYWORDS.values(), *("yes", "no", "left", "right", "above", "below", "larger", "smaller")]
    return texts + 60 * [f"{word} {word}" for word in [*alone, *map(str, range(1, 10)), SHORT_ANSWER.strip()]]
