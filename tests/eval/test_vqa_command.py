"""LLaVA's commands that answer a file of questions: flags, chunks, records, and what is refused."""

import json
import re

import pytest

from llava.errors import UserError
from llava.eval import model_vqa, model_vqa_loader
from llava.eval.benchmark import Question
from llava.eval.vqa_command import chunk_of, template_with_tags
from tests.conftest import TINY_LLAVA

FLAGS = ["--model-path", str(TINY_LLAVA), "--device", "cpu", "--temperature", "0"]


@pytest.fixture
def files(miniatures, tmp_path):
    folder = miniatures / "mm-vet"
    answers = tmp_path / "answers" / "run.jsonl"
    return [
        *("--question-file", str(folder / "llava-mm-vet.jsonl"), "--image-folder", str(folder / "images")),
        *("--answers-file", str(answers)),
    ], answers


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_of_questions_becomes_a_file_of_answers(files, miniatures):
    flags, answers = files
    # LLaVA's scripts pass --model-base without a value where there is none.
    argv = [*flags, *FLAGS, "--max_new_tokens", "3", "--top_p", "0.9", "--num_beams", "1", "--model-base"]
    assert model_vqa.main(argv) == 0
    questions = records(miniatures / "mm-vet" / "llava-mm-vet.jsonl")
    written = records(answers)
    assert [(line["question_id"], line["prompt"]) for line in written] == [
        (question["question_id"], question["text"]) for question in questions
    ]
    assert all(line["model_id"] == "llava-v1.5-tiny" and line["text"] for line in written)


def test_chunks_together_are_the_whole(files, tmp_path):
    flags, answers = files
    short = [*FLAGS, "--max_new_tokens", "2"]
    assert model_vqa_loader.main([*flags, *short]) == 0
    parts = []
    for index in range(3):
        chunk = [
            "--answers-file",
            str(tmp_path / f"3_{index}.jsonl"),
            "--num-chunks",
            "3",
            "--chunk-idx",
            str(index),
        ]
        assert model_vqa_loader.main([*flags, *chunk, *short]) == 0
        parts += records(tmp_path / f"3_{index}.jsonl")
    assert parts == records(answers)


def test_sampling_is_the_default_as_in_llava(files):
    flags, _ = files
    options = model_vqa.COMMAND._parser().parse_args(flags)
    assert (options.temperature, options.conv_mode, options.max_new_tokens) == (0.2, "llava_v1", 1024)
    assert model_vqa_loader.COMMAND._parser().parse_args(flags).max_new_tokens == 128


def test_parts_are_consecutive_and_the_last_may_be_empty():
    questions = [Question(number, "") for number in range(7)]
    parts = [[item.id for item in chunk_of(questions, 3, index)] for index in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6]]
    assert chunk_of(questions[:2], 4, 3) == []
    with pytest.raises(UserError, match="--chunk-idx is 3; accepted: 0 to 2"):
        chunk_of(questions, 3, 3)


@pytest.mark.parametrize(
    ("template", "model", "expected"),
    [
        ("v1", "llava-plain-7b", "v1_mmtag"),
        ("v1_mmtag", "llava-plain-7b", "v1_mmtag"),
        ("v1", "llava-plain-Finetune", "v1"),
        ("v1", "llava-v1.5-7b", "v1"),
    ],
)
def test_a_model_that_was_only_pretrained_gets_a_template_with_tags(template, model, expected):
    assert template_with_tags(template, model) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1, "text": "a"}\n{"question_id": 2}\n', "questions.jsonl, line 2 lacks 'text'"),
        ('{"question_id": 1, "text": "a"}\n\n{"question\n', "questions.jsonl, line 3 is not JSON"),
        ("[1]\n", r"questions.jsonl, line 1 is \[1\]; expected a JSON object"),
        (None, "there is no file"),
    ],
)
def test_a_bad_question_file_is_said_before_a_model_is_loaded(text, message, tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    if text is not None:
        path.write_text(text)
    argv = [
        "--question-file",
        str(path),
        "--answers-file",
        str(tmp_path / "a.jsonl"),
        "--model-path",
        "/nowhere",
    ]
    assert model_vqa.main(argv) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)


def test_answers_are_not_written_over_the_questions(files, capsys):
    flags, _ = files
    argv = [*flags, *FLAGS, "--answers-file", flags[1]]
    assert model_vqa.main(argv) == 2
    assert "would overwrite" in capsys.readouterr().err
