"""Answers and problems of MMBench, SEED-Bench and ScienceQA, converted by LLaVA's scripts."""

import json

import openpyxl
import pytest

from llava.eval.benchmarks.mmbench import read_table
from scripts import convert_mmbench_for_submission, convert_seed_for_submission, convert_sqa_to_llava


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_mmbench(miniatures, tmp_path):
    table = miniatures / "mmbench" / "mmbench_dev_20230712.tsv"
    lines = [
        {"question_id": 200, "round_id": 0, "text": "A"},
        {"question_id": 200, "round_id": 1, "text": "not this"},
        {"question_id": 201, "text": "old"},
        {"question_id": 201, "text": "B"},  # later lines win
    ]
    write(tmp_path / "answers" / "run.jsonl", *lines)
    argv = ["--annotation-file", str(table), "--result-dir", str(tmp_path / "answers")]
    argv += ["--upload-dir", str(tmp_path / "upload"), "--experiment", "run"]
    assert convert_mmbench_for_submission.main(argv) == 0
    rows = list(openpyxl.load_workbook(tmp_path / "upload" / "run.xlsx").active.values)
    assert rows[0][6] == "prediction"
    assert [row[6] for row in rows[1:4]] == ["A", "B", None]
    assert len(rows) == 1 + len(read_table(table))


def test_mmbench_without_answers_is_one_sentence(miniatures, tmp_path, capsys):
    table = miniatures / "mmbench" / "mmbench_dev_20230712.tsv"
    argv = ["--annotation-file", str(table), "--result-dir", str(tmp_path)]
    assert (
        convert_mmbench_for_submission.main([*argv, "--upload-dir", str(tmp_path), "--experiment", "run"])
        == 2
    )
    assert capsys.readouterr().err == f"error: there is no file {tmp_path / 'run.jsonl'}\n"


def test_seed(miniatures, tmp_path, capsys):
    official = miniatures / "seed_bench" / "SEED-Bench.json"
    questions = json.loads(official.read_text())["questions"]
    # All about images are answered right but one, which has a period; those about videos are not.
    images = [item for item in questions if item["data_type"] == "image"]
    lines = [{"question_id": int(item["question_id"]), "text": item["answer"]} for item in images]
    lines[0]["text"] += "."
    upload, results = tmp_path / "upload" / "run.jsonl", tmp_path / "results.txt"
    argv = ["--annotation-file", str(official), "--result-file", write(tmp_path / "run.jsonl", *lines)]
    argv += ["--result-upload-file", str(upload), "--path_to_all_results", str(results)]
    assert convert_seed_for_submission.main(argv) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(images) == 20
    assert printed[-3:] == [
        f"Total accuracy: {100 * 19 / len(questions):.2f}%",
        "Image accuracy: 95.00%",
        "Video accuracy: 0.00%",
    ]
    assert "Action Recognition: 0.00%" in printed
    assert results.read_text() == "SEEDBench (Image)\t95.00\n"
    assert len(upload.read_text().splitlines()) == 20


PROBLEM = {
    "question": "Which  one?",
    "choices": ["x", "y"],
    "answer": 1,
    "hint": "",
    "image": "image.png",
    "lecture": "Learn.",
    "solution": "Because.",
}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("QCM", "Which one?\nContext: N/A\nOptions: (A) x (B) y"),
        ("CQM", "Context: N/A\nQuestion: Which one?\nOptions: (A) x (B) y"),
        ("QCML", "Which one?\nContext: N/A\nOptions: (A) x (B) y\nBECAUSE: Learn."),
        ("QCMLE", "Which one?\nContext: N/A\nOptions: (A) x (B) y\nBECAUSE: Learn. Because."),
        ("QCEM", "Which one?\nContext: N/A\nBECAUSE: Because.\nOptions: (A) x (B) y"),
    ],
)
def test_what_a_question_shows(shown, expected):
    assert convert_sqa_to_llava.question_text(PROBLEM, shown) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("A", "The answer is B."),
        ("AL", "The answer is B. BECAUSE: Because."),  # the published script swaps these two
        ("AE", "The answer is B. BECAUSE: Learn."),
        ("ALE", "The answer is B. BECAUSE: Learn. Because."),
        ("AEL", "The answer is B. BECAUSE: Because. Learn."),
        ("LA", "Learn. The answer is B."),
        ("EA", "Because. The answer is B."),
        ("LEA", "Learn. Because. The answer is B."),
        ("ELA", "Because. Learn. The answer is B."),
        ("LEPA", "LECTURE: Learn.\nSOLUTION: Because.\n###\nANSWER: B."),
    ],
)
def test_what_an_answer_says(said, expected):
    assert convert_sqa_to_llava.answer_text(PROBLEM, said) == expected


@pytest.fixture
def base(tmp_path):
    plain = {**PROBLEM, "image": None, "hint": "Read."}
    (tmp_path / "problems.json").write_text(json.dumps({"7": PROBLEM, "8": plain}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"train": ["7", "8"], "val": ["9"]}))
    return tmp_path


def test_records_for_training(base, capsys):
    assert convert_sqa_to_llava.main(["convert_to_llava", "--base-dir", str(base), "--split", "train"]) == 0
    path = base / "llava_train_QCM-LEA.json"
    assert capsys.readouterr().out == f"{path}\n"
    first, second = json.loads(path.read_text())
    assert (first["id"], first["image"]) == ("7", "7/image.png")
    assert first["conversations"][0]["value"] == "Which one?\nContext: N/A\nOptions: (A) x (B) y\n<image>"
    assert first["conversations"][1] == {"from": "gpt", "value": "Learn. Because. The answer is B."}
    assert "image" not in second
    assert second["conversations"][0]["value"].startswith("Which one?\nContext: Read.")


def test_lines_of_instruction_and_output(base):
    argv = ["convert_to_jsonl", "--base-dir", str(base), "--split", "train", "--prompt-format", "CQM-A"]
    assert convert_sqa_to_llava.main(argv) == 0
    lines = (base / "scienceqa_train_CQM-A.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {
        "id": "7",
        "image": "7/image.png",
        "instruction": "Context: N/A\nQuestion: Which one?\nOptions: (A) x (B) y",
        "output": "The answer is B.",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--split", "train", "--prompt-format", "QCM"],
            "--prompt-format is 'QCM'; accepted: one of CQM",
        ),
        (["--split", "test"], "lacks 'test'; it has 'train', 'val'"),
        (["--split", "val"], "problem 9 of problems.json is None"),
    ],
)
def test_what_is_refused(flags, message, base, capsys):
    assert convert_sqa_to_llava.main(["convert_to_llava", "--base-dir", str(base), *flags]) == 2
    assert message in capsys.readouterr().err
