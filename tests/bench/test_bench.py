"""The measurements measure what they say, on tiny sizes."""

import json

import pytest
import torch

from llava.assistant import Assistant
from llava.bench import flips, model_sizes, training
from llava.engine.stopwatch import Stopwatch
from llava.image_io import load_image
from tests.conftest import GOLDEN, TINY_CLIP_SIZES, TINY_LLAVA


def test_flips_are_none_on_a_cpu_in_float32(capsys):
    model = ["--model-path", str(TINY_LLAVA), "--device", "cpu", "--token-reduction", "TRIM:-1"]
    assert flips.main([*model, "--images", str(GOLDEN), "--limit", "2", "--batch", "4"]) == 0
    _, batches, answers, exact = capsys.readouterr().out.splitlines()
    assert " 0 of 3456 patches" in batches
    assert " 0 of 6 answers" in answers
    assert " 0 of 6 image-question pairs" in exact


@pytest.mark.parametrize("setting", ["MMTok:20", "DivPrune:20", "EADP:20"])
def test_patches_are_chosen_as_for_an_answer(setting, capsys):
    """Some methods know what is padding, others judge what is behind the projector."""
    assistant = Assistant.load(str(TINY_LLAVA), device="cpu", token_reduction=setting, conv_mode="vicuna_v1")
    image, question = load_image(GOLDEN / "img0.png").resize((400, 100)), "What color is the star?"
    (kept,) = flips.kept_in_batches(assistant.encoder, [(image, question)], 4)
    answer = assistant.answer(question, image)
    assert torch.equal(kept, answer.kept[0].flatten())
    model = ["--model-path", str(TINY_LLAVA), "--device", "cpu", "--dtype", "bfloat16"]
    arguments = ["--token-reduction", setting, "--images", str(GOLDEN), "--limit", "1", "--question", "What?"]
    assert flips.main([*model, *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{setting}, cpu, torch.bfloat16; kept on average 3.5%")


def test_flips_are_counted_by_hand():
    kept = torch.tensor([[True, False, False, True], [True, True, False, False]])
    line = flips.describe_flips(
        "now", kept, torch.tensor([[True, False, False, True], [True, False, True, False]])
    )
    assert "2 of 8 patches (25.0000%), 1 of 2 image-question pairs" in line


def test_answers_that_differ_are_counted():
    assert flips.describe_answers("now", ["a", "b", "c"], ["a", "x", "y"]).endswith(" 2 of 3 answers")


def test_a_folder_without_pictures_is_one_sentence(tmp_path, capsys):
    assert flips.main(["--images", str(tmp_path)]) == 2
    assert "no images" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--batch"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_number_of_nothing_is_one_sentence(option, value, capsys):
    assert flips.main(["--images", "images", option, value]) == 2
    assert f"argument {option}: {value!r} is not a valid number" in capsys.readouterr().err


def test_a_stopwatch_measures_laps():
    watch = Stopwatch(torch.device("cpu"))
    assert 0 <= watch.lap() < 1000


TINY_LLAMA = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
}


def test_a_training_step_is_measured_per_reduction(monkeypatch, capsys):
    monkeypatch.setitem(model_sizes.LANGUAGE_MODELS, "1b", TINY_LLAMA)
    monkeypatch.setattr(training, "VIT_L_14_336", TINY_CLIP_SIZES)
    arguments = ["--device", "cpu", "--repeats", "1", "--rank", "2", "--text-tokens", "30"]
    assert training.main([*arguments, "--token-reduction", "none", "TRIM:0.25", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [steps[name]["visual_tokens"] for name in ("none", "TRIM:0.25")] == [16, 5]
    assert all(value > 0 for step in steps.values() for name, value in step.items() if name != "peak_mib")
    assert training.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[2].endswith(" 1.000")


def test_a_measured_step_learns_the_adapter_and_the_projector_alone(monkeypatch):
    trainee = training.Trainee(
        TINY_LLAMA, TINY_CLIP_SIZES, rank=2, device=torch.device("cpu"), dtype=torch.float32
    )
    before = {name: value.clone() for name, value in trainee.wrapped.named_parameters()}
    for _ in range(2):  # the first step gives an adapter's second half something to learn from
        trainee.step("TRIM:-1", text_tokens=30)
    changed = {name for name, value in trainee.wrapped.named_parameters() if not value.equal(before[name])}
    assert changed == {name for name in before if "lora_" in name or "mm_projector" in name}


def test_more_text_than_learned_tokens_is_needed(capsys):
    assert training.main(["--text-tokens", "20"]) == 2
    assert "--text-tokens is 20; accepted: more than 20" in capsys.readouterr().err
