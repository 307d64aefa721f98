"""What answers depend on can be told apart, and what they do not depend on makes no difference."""

from dataclasses import replace
from pathlib import Path

import torch

from llava.assistant import Assistant
from llava.eval import provenance
from llava.eval.benchmark import Question
from llava.eval.provenance import code_digest, questions_digest, versions, weights_digest
from tests.conftest import TINY_LLAVA


def test_models_are_told_apart_by_their_weights_alone(shapes):
    again = Assistant.load(device="cpu", token_reduction="none")  # without CLIP's text encoder
    assert weights_digest(again.model) == weights_digest(shapes.model)
    tiny = Assistant.load(str(TINY_LLAVA), device="cpu", conv_mode="vicuna_v1")
    assert weights_digest(tiny.model) != weights_digest(shapes.model)
    with torch.no_grad():
        again.model.lm_head.weight.mul_(1.001)  # as after a step of training
    assert weights_digest(again.model) != weights_digest(shapes.model)


def test_questions_are_told_apart_by_what_is_asked_and_not_by_where_it_lies():
    questions = [Question(1, "a", image=Path("here/x.png")), Question(2, "b")]
    moved = [replace(questions[0], image=Path("there/x.png")), questions[1]]
    assert questions_digest(moved) == questions_digest(questions)
    for change in (
        {"text": "c"},
        {"clip_text": "c"},
        {"image": Path("y.png")},
        {"id": 3},
        {"extra": {"k": 1}},
    ):
        assert questions_digest([replace(questions[0], **change), questions[1]]) != questions_digest(
            questions
        )
    assert questions_digest(questions[::-1]) != questions_digest(questions)


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
