"""What runs for an answer, counted: nothing is timed here, and yet nothing may become more."""

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.bench import stage_work
from llava.bench.measure import held_mib
from llava.bench.model_sizes import LANGUAGE_MODELS, TINY_CLIP, TINY_LANGUAGE_MODEL
from llava.bench.pictures import random_pictures
from llava.bench.random_llava import random_assistant, random_language_model
from llava.bench.stages import FIRST_TOKEN, StageBench
from llava.engine.base import Generation
from llava.messages import Answer, Request
from llava.model.multimodal_encoder.reducers.registry import parse_reduction

REDUCTIONS = {"none": 100, "TRIM:0.21": 22, "TRIM:64": 65, "Random:0.21": 22, "Pool:64": 64}
BATCH, NEW_TOKENS = 3, 4
CPU_POSITION = 2 * 2 * 64 * 4  # bytes of keys and values of a position: two layers, width 64, float32


@pytest.fixture(scope="module")
def bench() -> StageBench:
    assistant = random_assistant(TINY_LANGUAGE_MODEL, TINY_CLIP)
    return StageBench(assistant, random_pictures(BATCH), NEW_TOKENS)


class Counts:
    """Counts what runs, by hooks."""

    def __init__(self, bench: StageBench) -> None:
        tower, model = bench.encoder.tower, bench.model
        assert tower.text_tower is not None
        self.images: list[int] = []  # of every run of the vision encoder
        self.encoder_layers = self.questions = self.projections = 0
        self.logits: list[int] = []  # positions of every run of the output layer
        self._hooks = [
            tower.vision_tower.vision_model.embeddings.register_forward_hook(self._see),
            tower.text_tower.text_model.encoder.layers[0].register_forward_hook(self._read),
            model.get_model().mm_projector.register_forward_hook(self._project),
            model.lm_head.register_forward_hook(self._score),
        ]
        self._hooks += [
            layer.register_forward_hook(self._encode)
            for layer in tower.vision_tower.vision_model.encoder.layers
        ]

    def _see(self, module, arguments, output) -> None:
        self.images.append(len(output))

    def _encode(self, *_) -> None:
        self.encoder_layers += 1

    def _read(self, module, arguments, output) -> None:
        self.questions += len(arguments[0])

    def _project(self, *_) -> None:
        self.projections += 1

    def _score(self, module, arguments, output) -> None:
        self.logits.append(arguments[0].shape[1])

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


@pytest.fixture
def counts(bench: StageBench) -> Iterator[Counts]:
    made = Counts(bench)
    yield made
    made.remove()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_every_stage_runs_once_for_a_batch(bench: StageBench, counts: Counts, reduction: str):
    reducer = parse_reduction(reduction)
    seen = bench.answer(reducer, bench.preprocess(BATCH))
    assert counts.images == [BATCH]
    assert counts.encoder_layers == 2  # of three, of which the last but one is read
    assert counts.questions == (BATCH if reducer.needs_question else 0)
    assert counts.projections == 1
    assert set(counts.logits) == {1}  # of the last position only
    assert seen.counts == [REDUCTIONS[reduction]] * BATCH
    assert seen.cache_bytes == CPU_POSITION * BATCH * max(seen.lengths)
    assert len(seen.decode) == NEW_TOKENS - 1
    assert set(seen.laps) == set(FIRST_TOKEN) - (set() if reducer.needs_question else {"text"})
    assert seen.whole_answer == pytest.approx(sum(seen.laps.values()) + sum(seen.decode))


def test_a_question_about_several_images_is_read_once(bench: StageBench, counts: Counts):
    asked = StageBench(bench.assistant, bench.pictures, NEW_TOKENS, question="What is it?")
    seen = asked.answer(parse_reduction("TRIM:64"), asked.preprocess(BATCH))
    assert counts.questions == len(seen.questions) == 1


def test_several_questions_about_an_image_encode_it_once(bench: StageBench, counts: Counts):
    (picture,) = random_pictures(1)
    generation = Generation(max_new_tokens=2)
    requests = [
        Request.ask(f"What is number {i}?", picture, token_reduction="TRIM:64", generation=generation)
        for i in range(6)
    ]
    answers = list(bench.assistant.answer_all(requests, batch_size=2))
    assert all(isinstance(answer, Answer) and answer.cost.visual_tokens == 65 for answer in answers)
    assert counts.images == [1]
    assert counts.encoder_layers == 2
    assert counts.questions == 6


def test_a_prefill_multiplies_what_is_counted_and_nothing_more(bench: StageBench):
    prompt, length = torch.randn(1, 50, 64), 50
    work = stage_work.prefill_work(bench.model, [length])
    masked = stage_work.attention_flops(2, 64, length**2 - stage_work.causal_pairs(length))
    with (
        FlopCounterMode(display=False) as rotary,
        torch.no_grad(),
    ):
        bench.model.get_model().rotary_emb(prompt, torch.arange(length)[None])
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        bench.engine.submit(prompt[0], Generation(max_new_tokens=2))
        bench.engine.step()
    bench.engine.clear()
    assert counter.get_total_flops() == work.flops + masked + rotary.get_total_flops()


def test_a_model_holds_its_weights_once(bench: StageBench):
    held = {weight.data_ptr(): weight.nbytes for weight in bench.model.parameters()}
    inner, tower = bench.model.get_model(), bench.encoder.tower
    parts = (inner.embed_tokens, inner.layers, inner.norm, bench.model.lm_head, inner.mm_projector, tower)
    assert sum(held.values()) == stage_work.weight_bytes(*parts)
    assert held_mib(bench.model) == sum(held.values()) / 2**20


def test_the_work_counted_at_real_proportions_falls_with_the_visual_tokens():
    """Of the 1.25 billion parameters with which the published code was measured, without making them."""
    model = random_language_model(LANGUAGE_MODELS["1b"], torch.device("meta"), torch.float32)
    whole, reduced = (stage_work.prefill_work(model, [tokens + 60]).flops for tokens in (576, 121))
    weights, head = 22 * (4 * 2048**2 + 3 * 2048 * 5632), 2048 * 32000
    assert whole == 2 * weights * 636 + 4 * 22 * 2048 * (636 * 637 / 2) + 2 * head
    assert reduced / whole < 0.28
    assert stage_work.cache_bytes_per_position(model) == 2 * 22 * 2048 * 4


def test_answers_are_as_long_as_asked_for_whatever_the_model_says(bench: StageBench, monkeypatch):
    monkeypatch.setattr(bench.model.generation_config, "eos_token_id", list(range(1000)))
    ended = StageBench(bench.assistant, bench.pictures, NEW_TOKENS)
    said = ended.answer(parse_reduction("Pool:4"), ended.preprocess(1))
    assert len(said.decode) == NEW_TOKENS - 1
