"""Samples of the text pretraining: written scenes with questions about them, as sequences of tokens.

A scene comes in one of two forms:

* *written*: its patches as words, in the order a picture gives them: ``red star red star blue ring ...``;
* *overprinted*: one position per patch, whose embedding is the sum of the two words' embeddings. That is as
  near as text comes to visual tokens, each of which carries a color and a shape at once.

Often only patches that TRIM would keep are given (those of the things that the questions name), with some
mistakes mixed in, and at the end one for the merged rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, conv_templates
from llava.tokenizer import ids_and_spans
from llava.train.preprocess import supervised_tokens
from playground.shapes.questions import (
    KINDS,
    SHORT_ANSWER,
    TURNS,
    Question,
    ask,
    ask_description,
    ask_several,
    named_words,
)
from playground.shapes.world import COLORS, SHAPES, TRAIN, Scene, stream

# Stands for a patch that shows no thing, and for the merged rest.
NOTHING = "nothing"
KEPT_SHARE = 0.3
# Questions of a warm-up sample, and the word that begins each.
WARM_UP_QUESTIONS = 16
KEYWORDS = {"color": "color", "shape": "shape", "presence": "there"}
NO_WORD = -1

Patch = tuple[str, ...]
"""What a patch shows, in words: a color and a shape, or `NOTHING`."""


@dataclass(frozen=True, slots=True)
class TextSample:
    """One sequence.

    Attributes:
        words: Token of every position.
        overprint: Second token of every position, `NO_WORD` where there is none.
        labels: What to predict, `IGNORE_INDEX` where nothing is learned.
    """

    words: list[int]
    overprint: list[int]
    labels: list[int]


def kept_patches(scene: Scene, named: set[int], rng: np.random.Generator) -> list[Patch]:
    """What TRIM would leave of a picture, as words in raster order, with some mistakes.

    Args:
        scene: What is in the picture.
        named: The things that the question names.
        rng: Makes the mistakes.
    """
    shares = scene.coverage().reshape(len(scene.things), -1)
    chance = np.where([index in named for index in range(len(shares))], 0.9, 0.0)
    if rng.random() < 0.3:
        chance = np.maximum(chance, rng.choice([0.0, 0.1, 0.9], len(shares)))
    front = shares.argmax(0)  # (patches,)
    shown = shares.max(0) > KEPT_SHARE
    stays = rng.random(shares.shape[1]) < np.where(shown, chance[front], 0.01)
    thing_words = [(thing.color, thing.shape) for thing in scene.things]
    kept = [thing_words[front[index]] if shown[index] else (NOTHING,) for index in np.flatnonzero(stays)]
    return [*kept, (NOTHING,)]


def written_sample(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> TextSample:
    """A conversation whose image placeholder is replaced with the patches' words as text."""
    text = " ".join(word for patch in patches for word in patch)
    told = conversation.copy()
    told.messages[0][1] = told.messages[0][1].replace(DEFAULT_IMAGE_TOKEN, text)
    return _encode(told, [], tokenizer)


def overprinted_sample(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> TextSample:
    """A conversation whose image placeholder is replaced with one position per patch."""
    return _encode(conversation, patches, tokenizer)


def _encode(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> TextSample:
    segments = conversation.segments()
    prompt = "".join(segment.text for segment in segments)
    ids, spans = ids_and_spans(prompt, tokenizer)
    words, labels, overprint = [], [], []
    for token, is_learned in zip(ids, supervised_tokens(segments, spans), strict=True):
        if token == IMAGE_TOKEN_INDEX:
            pairs = [word_ids(patch, tokenizer) for patch in patches]
            words += [first for first, _ in pairs]
            overprint += [second for _, second in pairs]
            labels += [IGNORE_INDEX] * len(pairs)
        else:
            words.append(token)
            overprint.append(NO_WORD)
            labels.append(token if is_learned else IGNORE_INDEX)
    return TextSample(words, overprint, labels)


def word_ids(patch: Patch, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens of a patch's one or two words, each of which is a single piece of the vocabulary."""
    ids = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in patch]
    return ids[0], ids[1] if len(ids) > 1 else NO_WORD


def warm_up(scene: Scene, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase) -> TextSample:
    """A scene in a few overprinted positions, and questions about it in keywords, each with its answer."""
    patches = [(thing.color, thing.shape) for thing in scene.things for _ in range(int(rng.integers(1, 4)))]
    pairs = [word_ids(patches[index], tokenizer) for index in rng.permutation(len(patches))]
    words = [tokenizer.bos_token_id, *(first for first, _ in pairs)]
    overprint = [NO_WORD, *(second for _, second in pairs)]
    labels = [IGNORE_INDEX] * len(words)
    for _ in range(WARM_UP_QUESTIONS):
        question = ask(scene, rng, KINDS[int(rng.integers(len(KINDS)))])
        asked = [KEYWORDS[question.kind], *named_words(question.text)]
        ids = [word_ids((word,), tokenizer)[0] for word in (*asked, question.answer)]
        words += ids
        overprint += [NO_WORD] * len(ids)
        labels += [IGNORE_INDEX] * len(asked) + ids[-1:]
    return TextSample(words, overprint, labels)


def converse(questions: Sequence[Question]) -> Conversation:
    """Questions about a picture and their answers, in LLaVA-1.5's template."""
    conversation = conv_templates["vicuna_v1"].copy()
    for number, question in enumerate(questions):
        image = "" if number else f"{DEFAULT_IMAGE_TOKEN}\n"
        conversation.append_message(conversation.roles[0], image + question.text)
        conversation.append_message(conversation.roles[1], question.answer)
    return conversation


def caption(question: Question) -> Conversation:
    """A picture and its description, in the template of stage 1."""
    conversation = conv_templates["plain"].copy()
    conversation.append_message(conversation.roles[0], DEFAULT_IMAGE_TOKEN)
    conversation.append_message(conversation.roles[1], question.answer)
    return conversation


def make_sample(seed: int, form: str, tokenizer: PreTrainedTokenizerBase) -> TextSample:
    """The sample of a seed.

    Args:
        seed: Of the scene and of the questions.
        form: ``warm-up`` for keywords, ``turns`` for ten questions, ``single`` for one, ``caption`` for a
            description alone.
        tokenizer: The language model's.
    """
    scene, rng = Scene.from_seed(seed), stream(seed, "words")
    if form == "warm-up":
        return warm_up(scene, rng, tokenizer)
    if form == "turns":
        questions = ask_several(scene, rng, TURNS)
    elif form == "single":
        questions = [ask(scene, rng) if rng.random() < 0.95 else ask_description(scene, rng)]
    else:
        questions = [ask_description(scene, rng)]
    conversation = caption(questions[0]) if form == "caption" else converse(questions)
    # Where only what is asked for is left there is nothing to look up, so most scenes stay whole.
    whole = rng.random() < 0.6
    named = {index for question in questions for index in question.named}
    patches = kept_patches(scene, set(range(len(scene.things))) if whole else named, rng)
    make = written_sample if rng.random() < 0.2 else overprinted_sample
    return make(conversation, patches, tokenizer)


def vocabulary_texts(count: int) -> list[str]:
    """Everything that is said in the world, as the language model reads it, to learn a vocabulary from."""
    texts = []
    for seed in TRAIN[:count]:
        scene, rng = Scene.from_seed(seed), stream(seed, "words")
        prompt = converse([*ask_several(scene, rng, 3), ask_description(scene, rng)]).get_prompt()
        texts += prompt.replace(DEFAULT_IMAGE_TOKEN, NOTHING).replace("</s>", "\n").split("\n")
    every = [*COLORS, *SHAPES, *KEYWORDS.values(), NOTHING, SHORT_ANSWER.strip()]
    return texts + 50 * [f"{word} {word}" for word in every]
