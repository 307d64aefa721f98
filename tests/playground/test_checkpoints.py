import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPModel, CLIPTokenizer

from llava.assistant import Assistant
from llava.engine.base import Generation
from llava.eval.benchmark import Response
from llava.messages import Request
from playground.hard_shapes.benchmark import BENCHMARK as CROWDED
from playground.shapes.measure import held_out_questions, is_right
from playground.shapes.measure_clip import EASY, HARD, measure_clip
from playground.shapes.world import CROWDED_SEED, EXAMPLE_SEED, Scene

ROOT = Path(__file__).parents[2]
CHECKPOINTS = ROOT / "playground" / "shapes" / "checkpoints"
CLIP, LLAVA = CHECKPOINTS / "clip-shapes", CHECKPOINTS / "llava-shapes"
UNREDUCED = CHECKPOINTS / "llava-shapes-none"
HARD_CHECKPOINTS = ROOT / "playground" / "hard_shapes" / "checkpoints"
HARD_CLIP, HARD_LLAVA = HARD_CHECKPOINTS / "clip-hard-shapes", HARD_CHECKPOINTS / "llava-hard-shapes"
HARD_UNREDUCED = HARD_CHECKPOINTS / "llava-hard-shapes-none"


def test_checkpoints_are_small_half_precision_and_hold_clip_once():
    for checkpoints in (CHECKPOINTS, HARD_CHECKPOINTS):
        assert sum(file.stat().st_size for file in checkpoints.rglob("*") if file.is_file()) < 20e6
    for folder in (CLIP, UNREDUCED, LLAVA, HARD_CLIP, HARD_UNREDUCED, HARD_LLAVA):
        with safe_open(folder / "model.safetensors", "pt") as weights:
            names = list(weights.keys())
            assert {weights.get_tensor(name).dtype for name in names if "position_ids" not in name} == {
                torch.float16
            }
        assert folder in (CLIP, HARD_CLIP) or not any("vision_tower" in name for name in names)


def test_config_turns_the_reducer_on_and_finds_its_clip_beside_it():
    config = json.loads((LLAVA / "config.json").read_text())
    assert config["mm_vision_token_reduce_func"] == "TRIM:-1"
    assert (LLAVA.parent / config["mm_vision_tower"] / "config.json").exists()
    assert config["hidden_size"] // config["num_attention_heads"] in (32, 64)


def test_the_model_trained_without_reduction_reads_all_patches_and_as_well_what_trim_keeps():
    config = json.loads((UNREDUCED / "config.json").read_text())
    assert config["mm_vision_token_reduce_func"] is None
    assert (UNREDUCED.parent / config["mm_vision_tower"] / "config.json").exists()
    assistant = Assistant.load(str(UNREDUCED), device="cpu")
    asked = list(held_out_questions(60))
    short = Generation(max_new_tokens=12)
    for reduction, tokens in (("none", 256), ("TRIM:16", 17)):
        requests = [
            Request.ask(question.text, scene.render(), generation=short, token_reduction=reduction)
            for scene, question in asked
        ]
        answers = list(assistant.answer_all(requests))
        right = [
            is_right(answer.text, question.answer)
            for (_, question), answer in zip(asked, answers, strict=True)
        ]
        assert sum(right) / len(right) > 0.9
        assert {answer.cost.visual_tokens for answer in answers} == {tokens}


def test_clip_keeps_what_a_question_names_and_little_else():
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()
    results = measure_clip(model, CLIPTokenizer.from_pretrained(CLIP), EASY, 20)
    for kind in ("color", "shape", "presence"):
        assert results[kind]["named kept"] > 0.9
        assert results[kind]["others kept"] < 0.2
        assert 0.02 < results[kind]["kept"] < 0.25


def test_model_answers_held_out_questions_and_the_readmes():
    assistant = Assistant.load(str(LLAVA))
    asked = list(held_out_questions(60))
    short = Generation(max_new_tokens=12)
    requests = [Request.ask(question.text, scene.render(), generation=short) for scene, question in asked]
    answers = assistant.answer_all(requests)
    right = [
        is_right(answer.text, question.answer) for (_, question), answer in zip(asked, answers, strict=True)
    ]
    assert sum(right) / len(right) > 0.8
    (star,) = (thing for thing in Scene.from_seed(EXAMPLE_SEED).things if thing.shape == "star")
    example = Image.open(ROOT / "images" / "shapes.png").convert("RGB")
    assert is_right(assistant.answer("What color is the star?", example).text, star.color)


def test_two_questions_about_one_image_keep_different_patches():
    """What images/overview.png shows."""
    assistant = Assistant.load(str(LLAVA))
    image = Image.open(ROOT / "images" / "crowded.png").convert("RGB")
    scene = Scene.from_seed(CROWDED_SEED)
    covered = torch.from_numpy(scene.coverage()).amax(0) > 0
    kept = []
    for color, shape in (("green", "square"), ("yellow", "circle")):
        answer = assistant.answer(f"What shape is the {color} object?", image)
        (index,) = (i for i, thing in enumerate(scene.things) if thing.color == color)
        own = torch.from_numpy(scene.coverage())[index] > 0.1
        assert is_right(answer.text, shape)
        assert answer.kept[0][own].float().mean() > 0.9
        assert answer.kept[0][covered & ~own].float().mean() < 0.2
        assert answer.cost.visual_tokens < 40
        kept.append(answer.kept[0])
    assert not (kept[0] & kept[1]).any()


def test_clip_finds_small_things_in_crowded_scenes():
    model = CLIPModel.from_pretrained(HARD_CLIP, dtype=torch.float32).eval()
    results = measure_clip(model, CLIPTokenizer.from_pretrained(HARD_CLIP), HARD, 12)
    for kind in ("color", "shape", "count", "position", "character", "size", "description"):
        assert results[kind]["named kept"] > 0.95
        assert results[kind]["kept"] < 0.22


def answer_crowded(model, reduction=None, count=64):
    """Return the share of held-out questions about crowded scenes that are right, and the visual tokens."""
    asked = CROWDED.load(Path(), "held-out")[:count]
    requests = [
        Request.ask(question.text, question.image, generation=CROWDED.generation, token_reduction=reduction)
        for question in asked
    ]
    answers = list(Assistant.load(str(model), device="cpu").answer_all(requests))
    marks = [
        CROWDED.mark(Response(question, answer.text)) for question, answer in zip(asked, answers, strict=True)
    ]
    return sum(mark.points for mark in marks) / count, {answer.cost.visual_tokens for answer in answers}


def test_the_model_for_crowded_scenes_answers_held_out_questions():
    config = json.loads((HARD_LLAVA / "config.json").read_text())
    assert config["mm_vision_token_reduce_func"] == "TRIM:-1"
    right, tokens = answer_crowded(HARD_LLAVA)
    assert right > 0.85
    assert max(tokens) < 200


def test_its_companion_reads_whole_images_and_as_well_what_trim_keeps():
    config = json.loads((HARD_UNREDUCED / "config.json").read_text())
    assert config["mm_vision_token_reduce_func"] is None
    for reduction, expected in ((None, 576), ("TRIM:64", 65)):
        right, tokens = answer_crowded(HARD_UNREDUCED, reduction)
        assert right > 0.8
        assert tokens == {expected}
