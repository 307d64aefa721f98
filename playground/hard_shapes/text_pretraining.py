"""Train the small language model on crowded scenes in words, before it ever sees an image.

As in `playground.shapes.text_pretraining`, but with drills in keywords for a longer beginning and now and
then after: counting, above all, is learned from nothing else. What drills have taught takes a second round to
reach whole sentences.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from playground.hard_shapes.questions import KINDS, ask
from playground.hard_shapes.scene import TRAIN, VALIDATION, Scene
from playground.hard_shapes.text_samples import (
    COLUMN_WORDS,
    ROW_WORDS,
    SIZE_WORDS,
    Sample,
    encode,
    kept_patches,
    make_sample,
    vocabulary_texts,
    word_ids,
)
from playground.shapes.llama_tokenizer import train_llama_tokenizer
from playground.shapes.loop import Ahead, Report, fit, pick_device
from playground.shapes.presets import Preset
from playground.shapes.text_pretraining import answer_report, build_llama
from playground.shapes.text_samples import NO_WORD, converse
from playground.shapes.world import stream

# The highest learning rate of each round; the second repeats the first's number of steps.
PEAKS = (2e-3, 1.5e-3)
# Of the embeddings' width, for the words of an order that begin as waves.
WAVE_SHARE = 0.25
VOCABULARY = 900


def collate(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad samples on the right: words (samples, longest, most words), labels and mask (samples, longest)."""
    most = max(len(position) for sample in samples for position in sample.words)
    words = [
        torch.tensor([[*position, *[NO_WORD] * (most - len(position))] for position in sample.words])
        for sample in samples
    ]
    labels = [torch.tensor(sample.labels) for sample in samples]
    mask = [torch.ones(len(sample.labels), dtype=torch.long) for sample in samples]
    return (
        pad_sequence(words, batch_first=True, padding_value=NO_WORD),
        pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        pad_sequence(mask, batch_first=True),
    )


def embed(model: LlamaForCausalLM, words: Tensor) -> Tensor:
    """Add up the embeddings of each position's words: (samples, length, width)."""
    # As a bag of words per position, so that the embeddings of each need not be kept for the gradients.
    table = model.get_input_embeddings().weight
    flat = words.flatten(0, 1)
    real = flat != NO_WORD
    added = F.embedding_bag(flat.clamp(min=0), table, mode="sum", per_sample_weights=real.to(table.dtype))
    return added.unflatten(0, words.shape[:2])


def begin_in_order(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the embeddings of rows, columns and sizes begin as waves, so that neighbors are alike."""
    table = model.get_input_embeddings().weight
    width = table.shape[1]
    count = int(WAVE_SHARE * width) // 2
    with torch.no_grad():
        for number, ordered in enumerate((ROW_WORDS, COLUMN_WORDS, SIZE_WORDS)):
            lengths = torch.logspace(0, -1.2, count) * torch.pi
            steps = torch.linspace(0, 1, len(ordered)).unsqueeze(1) / lengths.flip(0) * 1.5
            waves = torch.cat([steps.sin(), steps.cos()], dim=1)
            own = slice(number * 2 * count, (number + 1) * 2 * count)
            values = torch.zeros(len(ordered), width)
            values[:, own] = waves * table.std() / waves.std() / WAVE_SHARE**0.5
            table[list(word_ids(ordered, tokenizer))] = values


Collated = tuple[Tensor, Tensor, Tensor]
"""Words, labels and mask of a batch; see `collate`."""


class TextBatches:
    """Makes the batch of a step from scenes, as needed.

    Args:
        tokenizer: The language model's.
        preset: Sizes.
    """

    # Share of the first round, from its first step, that is drills alone.
    DRILLS = 0.35
    FORMS = (
        ("turns", "drill", "single", "caption", "turns", "drill", "single", "listing"),
        ("turns", "drill", "turns", "caption", "turns", "single", "turns", "listing"),
    )
    # Sequences per step by form, relative to the preset's batch: about as many positions each.
    SHARE: ClassVar = {"drill": 1.3, "turns": 0.7, "single": 1.3, "caption": 1.3, "listing": 1.0}

    def __init__(self, tokenizer: PreTrainedTokenizerBase, preset: Preset) -> None:
        self._tokenizer = tokenizer
        self._batch = preset.text_batch
        self._steps = preset.text_steps

    def prepare(self, round_number: int, step: int) -> Collated:
        """Return the samples of a step of the first round, 0, or the second, all of one form."""
        forms = self.FORMS[round_number]
        warm_up = round_number == 0 and step < int(self.DRILLS * self._steps)
        form = "drill" if warm_up else forms[step % len(forms)]
        count = max(1, int(self._batch * self.SHARE[form]))
        step += round_number * self._steps
        # The upper half of the training range, so that these are not the scenes of the pictures.
        first = TRAIN[len(TRAIN) // 2 + 2 * step * self._batch]
        return collate([make_sample(first + row, form, self._tokenizer) for row in range(count)])


def answer_loss(model: LlamaForCausalLM, batch: Collated) -> Report:
    """Return cross-entropy on the answers of a batch, and the share of right tokens in them."""
    words, labels, mask = (one.to(model.device) for one in batch)
    with torch.autocast(model.device.type, torch.bfloat16):
        logits = model(inputs_embeds=embed(model, words), attention_mask=mask).logits
    return answer_report(logits, labels)


@torch.inference_mode()
def right_by_kind(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, count: int
) -> dict[str, float]:
    """Return the share of wholly right answers to single questions about validation scenes, by kind."""
    right: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in VALIDATION[-count:]:
        sample, kind = make_single(seed, tokenizer)
        right[kind].append(float(answer_loss(model, collate([sample]))["right"] == 1))
    return {kind: sum(several) / max(1, len(several)) for kind, several in right.items()}


def make_single(seed: int, tokenizer: PreTrainedTokenizerBase) -> tuple[Sample, str]:
    """Return a single question about a whole scene as a sample, and its kind."""
    scene, rng = Scene.from_seed(seed), stream(seed, "words")
    question = ask(scene, rng, KINDS[seed % len(KINDS)])
    return encode(converse([question]), kept_patches(scene, None, rng), tokenizer), question.kind


def pretrain_text(preset: Preset, folder: Path) -> None:
    """Train the language model on text and write it, with its tokenizer, in Llama's layout.

    Args:
        preset: Sizes.
        folder: Receives the checkpoint and ``text_pretraining.json``; exists afterwards only if complete.
    """
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer = train_llama_tokenizer(vocabulary_texts(500), unfinished, VOCABULARY)
    model = build_llama(preset, len(tokenizer))
    model.set_attn_implementation("eager")  # whose backward pass is faster on a CPU, at these lengths
    begin_in_order(model, tokenizer)
    model.to(pick_device())
    batches = TextBatches(tokenizer, preset)
    states = [unfinished.with_name(f"text-{number + 1}.state") for number in range(len(PEAKS))]
    for number, (peak, state) in enumerate(zip(PEAKS, states, strict=True)):
        work = Ahead(partial(batches.prepare, number), partial(answer_loss, model))
        fit(model, work, preset.text_steps, peak, state, muon=True)
    right = right_by_kind(model, tokenizer, min(800, 8 * preset.text_steps))
    print(f"text pretraining: {json.dumps(right)} of single questions right", flush=True)
    (unfinished / "text_pretraining.json").write_text(json.dumps({"validation_single_right": right}))
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    for state in states:
        state.unlink()
