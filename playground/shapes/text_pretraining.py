"""Train the small language model on text, before it ever sees an image.

A Vicuna can read; a Llama of two million parameters, freshly initialized, cannot, and does not learn to look
things up through a projector that is itself still learning. So it is pretrained on text first: scenes written
out, followed by questions about them in LLaVA's own template, until it finds the answers (`text_samples`).

It begins with a warm-up, questions and answers in keywords: ``color star red there blue ring no``. Looking
something up takes two steps, to find what is asked for and to find it in the scene; the warm-up leaves the
second alone, and so it is learned in a minute where whole sentences stay at guessing for long.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from llava.constants import IGNORE_INDEX
from playground.shapes.llama_tokenizer import CONTEXT, train_llama_tokenizer
from playground.shapes.loop import Report, fit, pick_device
from playground.shapes.presets import Preset
from playground.shapes.text_samples import NO_WORD, TextSample, make_sample, vocabulary_texts
from playground.shapes.world import HELD_OUT, TRAIN

HEAD = 32


def collate(samples: Sequence[TextSample], device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad samples on the right: words, overprint, labels and attention mask, each (samples, longest)."""

    def pad(rows: list[list[int]], filler: int) -> Tensor:
        tensors = [torch.tensor(row) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler).to(device)

    mask = pad([[1] * len(sample.words) for sample in samples], 0)
    words = pad([sample.words for sample in samples], 0)
    overprint = pad([sample.overprint for sample in samples], NO_WORD)
    return words, overprint, pad([sample.labels for sample in samples], IGNORE_INDEX), mask


def embed(model: LlamaForCausalLM, words: Tensor, overprint: Tensor) -> Tensor:
    """Embeddings of positions with one or two words, (samples, length, width)."""
    table = model.get_input_embeddings()
    second = table(overprint.clamp(min=0)) * (overprint != NO_WORD).unsqueeze(-1)
    return table(words) + second


def answer_report(logits: Tensor, labels: Tensor) -> Report:
    """Return cross-entropy on what is learned, and the share of right tokens in it.

    Args:
        logits: (samples, length, vocabulary).
        labels: `IGNORE_INDEX` where nothing is learned, (samples, length).
    """
    learned = labels[:, 1:] != IGNORE_INDEX
    chosen, target = logits[:, :-1][learned].float(), labels[:, 1:][learned]
    right = (chosen.argmax(-1) == target).float().mean()
    return {"loss": torch.nn.functional.cross_entropy(chosen, target), "right": right}


class TextPretraining:
    """The loss of one step, from written scenes made as needed."""

    # Share of the steps, from the first, that are warm-up samples alone.
    WARM_UP = 0.15
    FORMS = ("warm-up", "turns", "single", "turns", "caption", "turns", "single")
    # Sequences per step by form, relative to the preset's batch: about as many positions each.
    SHARE: ClassVar = {"warm-up": 2.0, "turns": 0.5, "single": 1.3, "caption": 1.3}

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, preset: Preset) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._batch = preset.text_batch
        self._warm_up = int(self.WARM_UP * preset.text_steps)

    def step_loss(self, step: int) -> Report:
        """Cross-entropy on the answers of one step's samples, and the share of right tokens in them."""
        form = "warm-up" if step < self._warm_up else self.FORMS[step % len(self.FORMS)]
        count = max(1, int(self._batch * self.SHARE[form]))
        # The upper half of the training range, so that these are not the scenes of the pictures.
        first = TRAIN[len(TRAIN) // 2 + 2 * step * self._batch]
        return self._loss([make_sample(first + row, form, self._tokenizer) for row in range(count)])

    def _loss(self, samples: Sequence[TextSample]) -> Report:
        words, overprint, labels, mask = collate(samples, self._model.device)
        logits = self._model(inputs_embeds=embed(self._model, words, overprint), attention_mask=mask).logits
        return answer_report(logits, labels)

    @torch.inference_mode()
    def test(self, count: int) -> float:
        """Share of right answers to single questions about held-out written scenes."""
        right = []
        for seed in HELD_OUT[:count]:
            sample = make_sample(seed, "single", self._tokenizer)
            right.append(float(self._loss([sample])["right"] == 1))
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


def pretrain_text(preset: Preset, folder: Path) -> None:
    """Train the language model on text and write it, with its tokenizer, in Llama's layout.

    Args:
        preset: Sizes.
        folder: Receives the checkpoint and ``text_pretraining.json``; exists afterwards only if complete.
    """
    torch.manual_seed(0)
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer = train_llama_tokenizer(vocabulary_texts(800), unfinished)
    model = build_llama(preset, len(tokenizer)).to(pick_device())
    training = TextPretraining(model, tokenizer, preset)
    state = unfinished.with_name("text.state")
    fit(model, training.step_loss, preset.text_steps, 2e-3, state)
    right = training.test(min(400, 8 * preset.text_steps))
    print(f"text pretraining: {right:.1%} of held-out single questions right", flush=True)
    (unfinished / "text_pretraining.json").write_text(json.dumps({"held_out_single_right": right}))
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    state.unlink()
