"""How many questions are answered together: by what one takes and what is free."""

from types import SimpleNamespace

from llava.assistant import bundled_checkpoint
from llava.engine.base import Generation
from llava.eval import batch_size
from llava.eval.batch_size import LARGEST, choose_batch_size, request_bytes
from llava.eval.processes import Processes
from llava.model.loading import load_prompt_model
from llava.model.placement import choose_placement


def test_a_question_takes_its_cache_and_one_layers_activations(shapes):
    # 256 patches and 512 tokens of text; per token of prompt and answer 2 x 5 layers x 6 heads x 32 numbers,
    # per token of prompt 8 x 192 + 3 x 512 more; 4 bytes each.
    expected = 4 * ((768 + 128) * 2 * 5 * 6 * 32 + 768 * (8 * 192 + 3 * 512))
    assert request_bytes(shapes, Generation(max_new_tokens=128)) == expected
    beams = request_bytes(shapes, Generation(max_new_tokens=128, num_beams=4))
    assert beams - expected == 4 * 3 * (768 + 128) * 2 * 5 * 6 * 32


def test_half_of_the_free_memory_is_used(shapes, monkeypatch):
    generation = Generation(max_new_tokens=128)
    each = request_bytes(shapes, generation)
    for free, expected in ((0, 1), (each, 1), (9 * each, 4), (10**6 * each, LARGEST)):
        monkeypatch.setattr(batch_size, "free_bytes", lambda _, free=free: free)
        assert choose_batch_size(shapes, generation, Processes()) == expected


def test_processes_on_one_device_share_its_memory(shapes, monkeypatch):
    generation = Generation(max_new_tokens=128)
    each = request_bytes(shapes, generation)
    monkeypatch.setattr(batch_size, "free_bytes", lambda _: 25 * each)
    assert choose_batch_size(shapes, generation, Processes(0, 4)) == 3


def test_memory_of_an_engine_elsewhere_is_not_counted(monkeypatch):
    model = load_prompt_model(str(bundled_checkpoint()), None, choose_placement("cpu", None))
    monkeypatch.setattr(batch_size, "free_bytes", lambda _: 0)
    assert choose_batch_size(SimpleNamespace(model=model), Generation(), Processes()) == LARGEST
