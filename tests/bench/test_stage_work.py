"""The work that is counted of each stage is what PyTorch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from llava.bench import stage_work
from llava.bench.model_sizes import TINY_CLIP, TINY_LANGUAGE_MODEL
from llava.bench.random_llava import random_assistant
from llava.model.splice import pad


@pytest.fixture(scope="module")
def tiny():
    assistant = random_assistant(TINY_LANGUAGE_MODEL, TINY_CLIP)
    assistant.encoder.tower.load_text_encoder()
    return assistant


def counted_flops(work) -> int:
    # The products of attention are seen one by one where it is not fused.
    with (
        FlopCounterMode(display=False) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        work()
    return counter.get_total_flops()


def test_the_work_of_the_vision_encoder_is_what_pytorch_counts(tiny):
    tower = tiny.encoder.tower
    pixels = torch.randn(2, 3, 140, 140)
    work = stage_work.vision_work(tower, 2)
    assert work.flops == counted_flops(lambda: tower.encode(pixels))
    weights = sum(weight.nbytes for weight in tower.vision_tower.vision_model.parameters())
    assert work.moved == weights + 2 * 4 * (pixels[0].numel() + 100 * 32)


def test_the_work_of_the_text_encoder_is_what_pytorch_counts_without_the_masked_half(tiny):
    tower = tiny.encoder.tower
    text = "What is it?"
    length = len(tower.load_text_encoder().tokenizer(text)["input_ids"])
    tower.clear_text_cache()
    masked = stage_work.attention_flops(2, 32, length**2 - stage_work.causal_pairs(length))
    assert stage_work.text_work(tower, [length]).flops + masked == counted_flops(
        lambda: tower.encode_texts([text])
    )


def test_the_work_of_the_language_model_is_what_pytorch_counts_without_the_masked_half(tiny):
    model, length = tiny.model, 20
    batch = pad([torch.randn(length, 64)] * 2, [torch.zeros(length)] * 2)
    masked = 2 * stage_work.attention_flops(2, 64, length**2 - stage_work.causal_pairs(length))
    work = stage_work.prefill_work(model, [length] * 2)
    rotary = counted_flops(lambda: model.model.rotary_emb(batch.embeddings, batch.position_ids))
    assert work.flops + masked + rotary == counted_flops(
        lambda: model(inputs_embeds=batch.embeddings, logits_to_keep=1)
    )
    step = stage_work.decode_work(model, [length] * 2)
    assert (
        step.flops == work.flops - stage_work.prefill_work(model, [length - 1] * 2).flops + 2 * 2 * 64 * 1000
    )
    weights = stage_work.weight_bytes(model.model.layers, model.lm_head)
    assert step.moved == weights + 2 * length * 2 * 2 * 64 * 4


def test_the_work_of_the_projector_is_what_pytorch_counts(tiny):
    projector = tiny.model.model.mm_projector
    work = stage_work.projector_work(projector, 5, 32 + 64, 4)
    assert work.flops == counted_flops(lambda: projector(torch.randn(5, 32)))
    assert work.moved == stage_work.weight_bytes(projector) + 4 * 5 * (32 + 64)
