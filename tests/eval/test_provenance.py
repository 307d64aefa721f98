"""What answers depend on can be told apart, and what they do not depend on makes no difference."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from llava.assistant import Assistant
from llava.eval import provenance
from llava.eval.benchmark import Question
from llava.eval.provenance import code_digest, question_digests, settings_of, versions, weights_digest
from llava.model.loading import load_checkpoint
from llava.model.placement import Placement, parse_device
from tests.conftest import TINY_LLAVA


def test_models_are_told_apart_by_their_weights_alone(shapes):
    again = Assistant.load(device="cpu", token_reduction="none")  # without CLIP's text encoder
    assert weights_digest(again.model) == weights_digest(shapes.model)
    tiny = Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1")
    assert weights_digest(tiny.model) != weights_digest(shapes.model)
    with torch.no_grad():
        again.model.lm_head.weight.mul_(1.001)  # as after a step of training
    assert weights_digest(again.model) != weights_digest(shapes.model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_found_no_room_on_the_device_are_told_like_all_others(dtype, tmp_path):
    """Which ones these are depends on the memory that other programs leave."""
    whole = load_checkpoint(TINY_LLAVA, None, Placement(parse_device("cpu"), dtype)).model
    expected = weights_digest(whole)
    parts = ("embed_tokens", "norm", "rotary_emb", "mm_projector", "vision_tower", "layers.0", "layers.2")
    places = dict.fromkeys(["lm_head", *(f"model.{part}" for part in parts)], "cpu")
    places["model.layers.1"] = "disk"
    placement = Placement(parse_device("cpu"), dtype, device_map=places, offload_folder=tmp_path)
    on_disk = load_checkpoint(TINY_LLAVA, None, placement).model
    assert on_disk.get_model().layers[1].mlp.up_proj.weight.is_meta
    assert weights_digest(on_disk) == expected
    cpu_offload(whole.get_model().mm_projector, execution_device=torch.device("cpu"))
    assert whole.get_model().mm_projector[0].weight.is_meta
    assert weights_digest(whole) == expected


def test_a_setting_that_changes_answers_is_told(shapes, monkeypatch):
    before = settings_of(shapes)
    assert settings_of(Assistant.load(device="cpu")) == before
    config, tower = shapes.model.config, shapes.model.get_vision_tower()
    with monkeypatch.context() as change:
        change.setattr(config, "rms_norm_eps", 0.5)
        assert settings_of(shapes)["config"] != before["config"]
    with monkeypatch.context() as change:
        change.setattr(config, "name_or_path", "elsewhere")
        assert settings_of(shapes) == before
    with monkeypatch.context() as change:
        change.setattr(tower.image_processor, "image_mean", [0.0, 0.9, 0.0])
        assert settings_of(shapes)["config"] != before["config"]
    projection = tower.text_tower.text_projection.weight
    projection.data.neg_()  # which the reducer reads
    try:
        assert settings_of(shapes)["text_encoder"] != before["text_encoder"]
    finally:
        projection.data.neg_()
    assert settings_of(shapes) == before


def test_questions_are_told_apart_by_what_is_asked_and_shown_not_by_where_it_lies(tmp_path):
    for folder, data in (("here", b"abc"), ("there", b"abc"), ("other", b"abd")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes(data)
    question = Question(1, "a", image=tmp_path / "here" / "x.png")
    (digest,) = question_digests([question])
    assert question_digests([replace(question, image=tmp_path / "there" / "x.png")]) == [digest]
    others = (
        *({"text": "c"}, {"clip_text": "c"}, {"id": 3}, {"extra": {"k": 1}}, {"image": None}),
        *({"image": tmp_path / "other" / "x.png"}, {"image": tmp_path / "none.png"}),
    )
    digests = question_digests([question, *(replace(question, **other) for other in others)])
    assert digests[0] == digest
    # An image that is not there is told like none: the question fails, and is asked anyway.
    assert len(set(digests)) == len(digests) - 1


def test_questions_are_told_apart_by_what_counts_as_asked_about(tmp_path, monkeypatch):
    class Corner:
        def __call__(self, rows, columns):
            return np.eye(rows, columns, dtype=bool)

    code = tmp_path / "code.py"
    monkeypatch.setattr(provenance.inspect, "getsourcefile", lambda kind: str(code))
    questions = [
        Question(1, "a", about=lambda *grid: np.ones(grid, dtype=bool)),
        Question(1, "a"),
        Question(1, "a", about=Corner()),
    ]
    code.write_text("first")
    first, without, corner = question_digests(questions)
    assert question_digests(questions) == [first, without, corner]
    code.write_text("second")
    again = question_digests(questions)
    assert again[0] != first
    assert again[1] == without
    assert again[2] != corner


def test_code_is_told_apart_by_what_answers(tmp_path, monkeypatch):
    (tmp_path / "engine").mkdir()
    (tmp_path / "eval").mkdir()
    for name in ("conversation.py", "engine/base.py", "eval/report.py"):
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    before = code_digest()
    (tmp_path / "eval" / "report.py").write_text("x = 2\n")
    assert code_digest() == before
    (tmp_path / "engine" / "base.py").write_text("x = 2\n")
    assert code_digest() != before


def test_versions_name_the_libraries():
    assert versions()["torch"] == torch.__version__
    assert {"llava", "code", "python", "transformers", "pillow"} <= versions().keys()
