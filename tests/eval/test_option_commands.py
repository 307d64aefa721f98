"""LLaVA's commands for MMBench, ScienceQA and Q-Bench: what they ask, write and score."""

import json

import pytest

from llava.eval import eval_science_qa, model_vqa_mmbench, model_vqa_qbench, model_vqa_science
from tests.conftest import TINY_LLAVA

FLAGS = ["--model-path", str(TINY_LLAVA), "--device", "cpu", "--temperature", "0", "--max_new_tokens", "2"]
LETTER = "Answer with the option's letter from the given choices directly."


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("more", "expected"), [([], 24), (["--all-rounds"], 84)])
def test_mmbench_is_asked_once_or_in_every_order(more, expected, miniatures, tmp_path):
    table = miniatures / "mmbench" / "mmbench_dev_20230712.tsv"
    answers = tmp_path / "answers" / "a.jsonl"
    argv = [
        "--question-file",
        str(table),
        "--answers-file",
        str(answers),
        "--single-pred-prompt",
        "--lang",
        "en",
    ]
    assert model_vqa_mmbench.main([*argv, *FLAGS, *more]) == 0
    lines = records(answers)
    assert len(lines) == expected
    assert list(lines[0]) == [
        *("question_id", "round_id", "prompt", "text", "options", "option_char"),
        *("answer_id", "model_id", "metadata"),
    ]
    assert LETTER not in lines[0]["prompt"]


def science_flags(miniatures, answers):
    folder = miniatures / "scienceqa"
    return [
        *("--question-file", str(folder / "llava_test_CQM-A.json"), "--answers-file", str(answers)),
        *("--image-folder", str(folder / "images" / "test"), "--single-pred-prompt", "--answer-prompter"),
        *("--conv-mode", "vicuna_v1"),
    ]


def test_science_is_asked_with_and_without_images(miniatures, tmp_path):
    answers = tmp_path / "a.jsonl"
    assert model_vqa_science.main([*science_flags(miniatures, answers), *FLAGS]) == 0
    lines = records(answers)
    assert len(lines) == 24
    assert sum(line["prompt"].startswith("<image>\n") for line in lines) == 16
    assert all(line["prompt"].endswith(LETTER) for line in lines)
    assert all(line["metadata"] == {} for line in lines)


def test_science_is_scored_as_published(miniatures, tmp_path, capsys):
    folder = miniatures / "scienceqa"
    problems = json.loads((folder / "problems.json").read_text())
    lines = []
    for number, (name, problem) in enumerate(problems.items()):
        image = "<image>\n" if problem["image"] else ""
        letter = "ABCDE"[problem["answer"]]
        text = letter if number % 2 else f"Well. The answer is {letter}."
        lines.append({"question_id": name, "prompt": f"{image}Q", "text": text})
    lines[0]["text"] = "I do not know"  # with an image
    del lines[2]  # without one: FAILED
    result = tmp_path / "a.jsonl"
    result.write_text("".join(json.dumps(line) + "\n" for line in lines))
    output, summary, scores = tmp_path / "o.json", tmp_path / "r.json", tmp_path / "s.txt"
    argv = ["--base-dir", str(folder), "--result-file", str(result), "--output-file", str(output)]
    argv += ["--output-result", str(summary), "--path_to_all_results", str(scores)]
    assert eval_science_qa.main(argv) == 0
    # 22 of 24 are right; of the 16 with an image 15.
    assert capsys.readouterr().out == "Total: 24, Correct: 22, Accuracy: 91.67%, IMG-Accuracy: 93.75%\n"
    document = json.loads(output.read_text())
    assert (len(document["correct"]), len(document["incorrect"])) == (22, 2)
    assert document["incorrect"][0] == {
        "question_id": "4",
        "parsed_ans": "FAILED",
        "ground_truth": "ABCDE"[problems["4"]["answer"]],
        "question": "<image>\nQ",
        "pred": "I do not know",
        "is_multimodal": True,
    }
    result = json.loads(summary.read_text())
    assert (result["correct"], result["count"], result["results"]["4"]) == (22, 24, -1)
    assert result["outputs"][list(problems)[2]] == "FAILED"
    assert scores.read_text() == "ScienceQA (Acc)\t91.67\nScienceQA IMG (Acc)\t93.75\n"


def test_science_without_images_has_a_score(tmp_path, capsys):
    (tmp_path / "problems.json").write_text('{"1": {"answer": 0, "choices": ["x", "y"]}}')
    (tmp_path / "pid_splits.json").write_text('{"test": ["1"]}')
    (tmp_path / "a.jsonl").write_text('{"question_id": "1", "prompt": "Q", "text": "A"}\n')
    argv = ["--base-dir", str(tmp_path), "--result-file", str(tmp_path / "a.jsonl"), "--options", "ABC"]
    assert eval_science_qa.main(argv) == 0
    assert capsys.readouterr().out == "Total: 1, Correct: 1, Accuracy: 100.00%, IMG-Accuracy: 0.00%\n"
    assert eval_science_qa.main([*argv, "--split", "val"]) == 2
    assert "lacks 'val'" in capsys.readouterr().err


def test_qbench_writes_its_items_with_the_responses(miniatures, tmp_path):
    folder, answers = miniatures / "qbench", tmp_path / "a.jsonl"
    argv = ["--questions-file", str(folder / "llvisionqa_dev.json"), "--answers-file", str(answers)]
    argv += ["--image-folder", str(folder / "images_llvisionqa"), "--lang", "en", *FLAGS]
    assert model_vqa_qbench.main(argv) == 0
    items = json.loads((folder / "llvisionqa_dev.json").read_text())
    lines = records(answers)
    assert [{key: line[key] for key in items[0]} for line in lines] == items
    assert all(line["response"] for line in lines)
    assert model_vqa_qbench.main(argv) == 0  # and again, from what has been answered
    assert records(answers) == lines
