"""Answers of LLaVA's commands become what GQA's scorer and the servers of VQAv2 and VizWiz take."""

import json

import pytest

from scripts import convert_gqa_for_eval, convert_vizwiz_for_submission, convert_vqav2_for_submission


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_gqa(tmp_path):
    source = write(tmp_path / "merge.jsonl", {"question_id": "201", "text": "Red..."})
    target = tmp_path / "predictions.json"
    assert convert_gqa_for_eval.main(["--src", source, "--dst", str(target)]) == 0
    assert json.loads(target.read_text()) == [{"questionId": "201", "prediction": "red"}]


def test_gqa_is_not_written_over_its_source(tmp_path, capsys):
    source = write(tmp_path / "merge.jsonl", {"question_id": "201", "text": "Red"})
    assert convert_gqa_for_eval.main(["--src", source, "--dst", source]) == 2
    assert "would overwrite" in capsys.readouterr().err


def test_vqav2(tmp_path, capsys):
    split = "llava_vqav2_mscoco_test-dev2015"
    write(tmp_path / "answers" / split / "run" / "merge.jsonl", {"question_id": 2, "text": "The Two dogs."})
    write(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", {"question_id": 1}, {"question_id": 2})
    assert convert_vqav2_for_submission.main(["--dir", str(tmp_path), "--ckpt", "run", "--split", split]) == 0
    assert capsys.readouterr().out.startswith("1 answers, 1 empty: ")
    assert json.loads((tmp_path / "answers_upload" / split / "run.json").read_text()) == [
        {"question_id": 1, "answer": ""},
        {"question_id": 2, "answer": "2 dogs"},
    ]


@pytest.fixture
def vizwiz(tmp_path):
    lines = [{"question_id": number, "image": image} for number, image in enumerate(["a.jpg", "b.jpg"])]
    questions = write(tmp_path / "llava_test.jsonl", *lines)
    target = tmp_path / "upload" / "run.json"
    return ["--annotation-file", questions, "--result-upload-file", str(target)], target


def test_vizwiz(vizwiz, tmp_path):
    flags, target = vizwiz
    answers = write(
        tmp_path / "run.jsonl", {"question_id": 1, "text": "A can"}, {"question_id": 0, "text": "No."}
    )
    assert convert_vizwiz_for_submission.main([*flags, "--result-file", answers]) == 0
    assert json.loads(target.read_text()) == [
        {"image": "a.jpg", "answer": "no"},
        {"image": "b.jpg", "answer": "can"},
    ]


def test_vizwiz_keeps_questions_about_one_image_apart(vizwiz, tmp_path):
    flags, target = vizwiz
    write(tmp_path / "llava_test.jsonl", *({"question_id": key, "image": "a.jpg"} for key in (0, 1)))
    lines = [{"question_id": key, "text": text} for key, text in ((0, "x"), (1, "y"))]
    answers = write(tmp_path / "run.jsonl", *lines)
    assert convert_vizwiz_for_submission.main([*flags, "--result-file", answers]) == 0
    assert [item["answer"] for item in json.loads(target.read_text())] == ["x", "y"]


def test_vizwiz_with_gaps_is_refused(vizwiz, tmp_path, capsys):
    flags, target = vizwiz
    answers = write(tmp_path / "run.jsonl", {"question_id": 1, "text": "A can"})
    assert convert_vizwiz_for_submission.main([*flags, "--result-file", answers]) == 2
    assert "1 of 2 questions have no answer" in capsys.readouterr().err
    assert not target.exists()


def test_a_malformed_line_is_named_by_its_number(vizwiz, tmp_path, capsys):
    flags, _ = vizwiz
    answers = write(tmp_path / "run.jsonl", {"question_id": 1, "text": "A can"}, {"question_id": 0})
    assert convert_vizwiz_for_submission.main([*flags, "--result-file", answers]) == 2
    assert "run.jsonl, line 2 lacks 'text'" in capsys.readouterr().err
