"""Teach the small language model text, before it ever meets a picture.

A Vicuna can read; a Llama of two million parameters, freshly initialized, cannot, and does not learn to look
things up through a projector that is itself still learning. So it goes to school first: scenes written out,
followed by questions about them in LLaVA's own template, until it finds the answers. A scene comes in one of
two forms:

* *written*: its patches as words, in the order a picture gives them: ``red star red star blue ring ...``;
* *overprinted*: one position per patch, whose embedding is the sum of the two words' embeddings. That is as
  near as text comes to visual tokens, each of which carries a color and a shape at once.

Only patches that TRIM would keep are given (those of the things that the questions name), with some mistakes
mixed in, and at the end one for the merged rest.

School begins with drills, questions and answers in catchwords: ``color star red there blue ring no``. Looking
something up takes two steps, to find what is asked for and to find it in the scene; a drill leaves the second
alone, and so it is learned in a minute where whole sentences stay at guessing for long.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX
from llava.conversation import Conversation, conv_templates
from llava.tokenizer import pieces_with_spans
from playground.shapes.llama_tokenizer import CONTEXT, train_llama_tokenizer
from playground.shapes.loop import Report, fit, pick_device
from playground.shapes.presets import Preset
from playground.shapes.questions import (
    KINDS,
    SHORT_ANSWER,
    Question,
    ask,
    ask_description,
    ask_several,
    named_words,
)
from playground.shapes.world import COLORS, HELD_OUT, SHAPES, TRAIN, Scene, stream

HEAD = 32
TURNS = 10
# Stands for a patch that shows no thing, and for the merged rest.
NOTHING = "nothing"
KEPT_SHARE = 0.3
# Questions of a drill, and the word that begins each.
DRILLED = 16
CATCHWORDS = {"color": "color", "shape": "shape", "presence": "there"}
NO_WORD = -1

Patch = tuple[str, ...]
"""What a patch shows, in words: a color and a shape, or `NOTHING`."""


@dataclass(frozen=True, slots=True)
class Lesson:
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


def written_lesson(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> Lesson:
    """A conversation whose image placeholder is replaced with the patches' words as text."""
    text = " ".join(word for patch in patches for word in patch)
    told = conversation.copy()
    told.messages[0][1] = told.messages[0][1].replace(DEFAULT_IMAGE_TOKEN, text)
    return _encode(told, [], tokenizer)


def overprinted_lesson(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> Lesson:
    """A conversation whose image placeholder is replaced with one position per patch."""
    return _encode(conversation, patches, tokenizer)


def _encode(
    conversation: Conversation, patches: Sequence[Patch], tokenizer: PreTrainedTokenizerBase
) -> Lesson:
    segments = conversation.segments()
    prompt = "".join(segment.text for segment in segments)
    learned = [segment.learned for segment in segments for _ in segment.text]
    words, labels = [tokenizer.bos_token_id], [IGNORE_INDEX]
    overprint = [NO_WORD]
    start = 0
    for number, part in enumerate(prompt.split(DEFAULT_IMAGE_TOKEN)):
        if number:
            start += len(DEFAULT_IMAGE_TOKEN)
            pairs = [word_ids(patch, tokenizer) for patch in patches]
            words += [first for first, _ in pairs]
            overprint += [second for _, second in pairs]
            labels += [IGNORE_INDEX] * len(pairs)
        ids, spans = pieces_with_spans(tokenizer, part)
        words += ids
        overprint += [NO_WORD] * len(ids)
        answers = [all(learned[start + first : start + last]) for first, last in spans]
        labels += [token if answer else IGNORE_INDEX for token, answer in zip(ids, answers, strict=True)]
        start += len(part)
    return Lesson(words, overprint, labels)


def word_ids(patch: Patch, tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens of a patch's one or two words, each of which is a single piece of the vocabulary."""
    ids = [tokenizer.convert_tokens_to_ids(f"▁{word}") for word in patch]
    return ids[0], ids[1] if len(ids) > 1 else NO_WORD


def drill(scene: Scene, rng: np.random.Generator, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    """A scene in a few overprinted positions, and questions about it in catchwords, each with its answer."""
    patches = [(thing.color, thing.shape) for thing in scene.things for _ in range(int(rng.integers(1, 4)))]
    pairs = [word_ids(patches[index], tokenizer) for index in rng.permutation(len(patches))]
    words = [tokenizer.bos_token_id, *(first for first, _ in pairs)]
    overprint = [NO_WORD, *(second for _, second in pairs)]
    labels = [IGNORE_INDEX] * len(words)
    for _ in range(DRILLED):
        question = ask(scene, rng, KINDS[int(rng.integers(len(KINDS)))])
        asked = [CATCHWORDS[question.kind], *named_words(question.text)]
        ids = [word_ids((word,), tokenizer)[0] for word in (*asked, question.answer)]
        words += ids
        overprint += [NO_WORD] * len(ids)
        labels += [IGNORE_INDEX] * len(asked) + ids[-1:]
    return Lesson(words, overprint, labels)


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


def make_lesson(seed: int, form: str, tokenizer: PreTrainedTokenizerBase) -> Lesson:
    """The lesson of a seed.

    Args:
        seed: Of the scene and of the questions.
        form: ``drill`` for catchwords, ``turns`` for ten questions, ``single`` for one, ``caption`` for a
            description alone.
        tokenizer: The language model's.
    """
    scene, rng = Scene.from_seed(seed), stream(seed, "words")
    if form == "drill":
        return drill(scene, rng, tokenizer)
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
    make = written_lesson if rng.random() < 0.2 else overprinted_lesson
    return make(conversation, patches, tokenizer)


def collate(lessons: Sequence[Lesson], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad lessons on the right: words, overprint, labels and attention mask, each (lessons, longest)."""

    def pad(rows: list[list[int]], filler: int) -> Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler).to(device)

    mask = pad([[1] * len(lesson.words) for lesson in lessons], 0)
    words = pad([lesson.words for lesson in lessons], 0)
    overprint = pad([lesson.overprint for lesson in lessons], NO_WORD)
    return words, overprint, pad([lesson.labels for lesson in lessons], IGNORE_INDEX), mask


def embed(model: LlamaForCausalLM, words: Tensor, overprint: Tensor) -> Tensor:
    """Embeddings of positions with one or two words, (lessons, length, width)."""
    table = model.get_input_embeddings()
    second = table(overprint.clamp(min=0)) * (overprint != NO_WORD).unsqueeze(-1)
    return table(words) + second


class TextSchool:
    """The loss of one step, from written scenes made as needed."""

    DRILLS = 0.15
    FORMS = ("drill", "turns", "single", "turns", "caption", "turns", "single")
    # Sequences per step by form, relative to the preset's batch: about as many positions each.
    SHARE = {"drill": 2.0, "turns": 0.5, "single": 1.3, "caption": 1.3}  # noqa: RUF012 - a constant

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, preset: Preset) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch = preset.school_batch
        self._drills = int(self.DRILLS * preset.school_steps)

    def step_loss(self, step: int) -> Report:
        """Cross-entropy on the answers of one step's lessons, and the share of right tokens in them."""
        form = "drill" if step < self._drills else self.FORMS[step % len(self.FORMS)]
        count = max(1, int(self._batch * self.SHARE[form]))
        # The upper half of the training range, so that these are not the scenes of the pictures.
        first = TRAIN[len(TRAIN) // 2 + 2 * step * self._batch]
        return self._loss([make_lesson(first + row, form, self._tokenizer) for row in range(count)])

    def _loss(self, lessons: Sequence[Lesson]) -> Report:
        words, overprint, labels, mask = collate(lessons, self._model.device)
        logits = self._model(inputs_embeds=embed(self._model, words, overprint), attention_mask=mask).logits
        learned = labels[:, 1:] != IGNORE_INDEX
        chosen, target = logits[:, :-1][learned], labels[:, 1:][learned]
        right = (chosen.argmax(-1) == target).float().mean()
        return {"loss": torch.nn.functional.cross_entropy(chosen, target), "right": right}

    @torch.inference_mode()
    def test(self, count: int) -> float:
        """Share of right answers to single questions about held-out written scenes."""
        right = []
        for seed in HELD_OUT[:count]:
            lesson = make_lesson(seed, "single", self._tokenizer)
            right.append(float(self._loss([lesson])["right"] == 1))
        return sum(right) / count


def build_llama(preset: Preset, vocabulary: int) -> LlamaForCausalLM:
    """A randomly initialized Llama of the preset's size."""
    width = preset.llama_width
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // HEAD * HEAD,
        num_hidden_layers=preset.llama_layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // HEAD,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    model = LlamaForCausalLM(config)
    # In a model this narrow the usual 0.02 lets the first layer drown the words; and an output that begins as
    # the words themselves makes copying, which is all that answering is here, easy to find.
    words = model.get_input_embeddings().weight.data.normal_(0, 0.4)
    model.lm_head.weight.data.copy_(0.15 * words)
    return model


def school_texts(count: int) -> list[str]:
    """Everything that is said in the world, as the language model reads it, to learn a vocabulary from."""
    texts = []
    for seed in TRAIN[:count]:
        scene, rng = Scene.from_seed(seed), stream(seed, "words")
        prompt = converse([*ask_several(scene, rng, 3), ask_description(scene, rng)]).get_prompt()
        texts += prompt.replace(DEFAULT_IMAGE_TOKEN, NOTHING).replace("</s>", "\n").split("\n")
    every = [*COLORS, *SHAPES, *CATCHWORDS.values(), NOTHING, SHORT_ANSWER.strip()]
    return texts + 50 * [f"{word} {word}" for word in every]


def go_to_school(preset: Preset, folder: Path) -> None:
    """Train the language model on text and write it, with its tokenizer, in Llama's layout.

    Args:
        preset: Sizes.
        folder: Receives the checkpoint and ``school.json``; exists afterwards only if complete.
    """
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer = train_llama_tokenizer(school_texts(800), unfinished)
    model = build_llama(preset, len(tokenizer)).to(pick_device())
    school = TextSchool(model, tokenizer, preset)
    fit(model, school.step_loss, preset.school_steps, 2e-3, unfinished.with_name("school.state"))
    right = school.test(min(400, 8 * preset.school_steps))
    print(f"text school: {right:.1%} of held-out single questions right", flush=True)
    (unfinished / "school.json").write_text(json.dumps({"held_out_single_right": right}))
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
