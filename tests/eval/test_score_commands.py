"""LLaVA's commands that score a file of answers: what they print, write and refuse."""

import json
import shutil

import pytest

from llava.eval import eval_pope, eval_textvqa


@pytest.fixture
def answered(miniatures, tmp_path):
    """Answers to the miniatures of POPE and TextVQA without a model: yes to all, and the first reference."""

    def write(name, lines):
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    pope = read(miniatures / "pope" / "llava_pope_test.jsonl")
    textvqa = read(miniatures / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl")
    truth = json.loads((miniatures / "textvqa" / "TextVQA_0.5.1_val.json").read_text())["data"]
    return (
        write("pope.jsonl", [{"question_id": line["question_id"], "text": "Yes"} for line in pope]),
        write(
            "textvqa.jsonl",
            [
                {"question_id": line["question_id"], "prompt": line["text"], "text": item["answers"][0]}
                for line, item in zip(textvqa, truth, strict=True)
            ],
        ),
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def pope_flags(miniatures, result):
    folder = miniatures / "pope"
    return [
        *("--annotation-dir", str(folder / "coco"), "--question-file", str(folder / "llava_pope_test.jsonl")),
        *("--result-file", str(result)),
    ]


def test_pope_prints_each_category_and_writes_the_mean_f1(miniatures, answered, tmp_path, capsys):
    results = tmp_path / "all" / "results.txt"
    assert eval_pope.main([*pope_flags(miniatures, answered[0]), "--path_to_all_results", str(results)]) == 0
    printed = capsys.readouterr().out.splitlines()
    # Half of each category's 16 labels are yes: TP 8, FP 8; precision 1/2, recall 1, F1 2/3.
    assert printed[:10] == [
        "Category: adversarial, # samples: 16",
        "TP\tFP\tTN\tFN\t",
        "8\t8\t0\t0",
        "Accuracy: 0.5",
        "Precision: 0.5",
        "Recall: 1.0",
        "F1 score: 0.6666666666666667",
        "Yes ratio: 1.0",
        "0.667, 0.500, 0.500, 1.000, 1.000",
        "=" * 36,
    ]
    assert results.read_text() == "POPE (Avg. F1)\t66.67\n"


def test_a_question_of_pope_without_an_answer_is_wrong(miniatures, answered, capsys):
    lines = answered[0].read_text().splitlines(keepends=True)
    answered[0].write_text("".join(lines[1:]))
    assert eval_pope.main(pope_flags(miniatures, answered[0])) == 0
    counts = capsys.readouterr().out.splitlines()[2].split("\t")
    assert sum(map(int, counts)) == 16
    assert counts != ["8", "8", "0", "0"]


def test_pope_scores_the_categories_that_have_labels(miniatures, answered, tmp_path, capsys):
    labels = tmp_path / "coco"
    labels.mkdir()
    shutil.copy(miniatures / "pope" / "coco" / "coco_pope_random.json", labels)
    argv = [*pope_flags(miniatures, answered[0]), "--annotation-dir", str(labels)]
    assert eval_pope.main(argv) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "Category" in line] == [
        "Category: random, # samples: 16"
    ]
    (labels / "coco_pope_random.json").rename(labels / "coco_pope_rare.json")
    assert eval_pope.main(argv) == 2
    assert "has no question of a category with labels in" in capsys.readouterr().err


def test_textvqa_prints_samples_and_accuracy(miniatures, answered, tmp_path, capsys):
    results = tmp_path / "results.txt"
    results.write_text("POPE (Avg. F1)\t85.90\nTextVQA (Acc)\t1.00\n")
    flags = ["--annotation-file", str(miniatures / "textvqa" / "TextVQA_0.5.1_val.json")]
    argv = [*flags, "--result-file", str(answered[1]), "--path_to_all_results", str(results)]
    assert eval_textvqa.main(argv) == 0
    assert "Samples: 24\nAccuracy: 100.00%" in capsys.readouterr().out  # eight of ten said so
    assert results.read_text() == "POPE (Avg. F1)\t85.90\nTextVQA (Acc)\t100.00\n"


def test_textvqa_scores_a_folder(miniatures, answered, tmp_path, capsys):
    folder = tmp_path / "answers"
    folder.mkdir()
    answered[1].rename(folder / "one.jsonl")
    flags = ["--annotation-file", str(miniatures / "textvqa" / "TextVQA_0.5.1_val.json")]
    assert eval_textvqa.main([*flags, "--result-dir", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("one\nSamples: 24\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "neither --result-file nor --result-dir is given"),
        (["--result-dir", "/nowhere"], "there are no files *.jsonl in /nowhere"),
        (["--result-file", "/nowhere/a.jsonl"], "there is no file /nowhere/a.jsonl"),
    ],
)
def test_what_textvqa_refuses(argv, message, miniatures, capsys):
    flags = ["--annotation-file", str(miniatures / "textvqa" / "TextVQA_0.5.1_val.json")]
    assert eval_textvqa.main([*flags, *argv]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_results_that_cannot_be_written_are_said(miniatures, answered, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = [
        *pope_flags(miniatures, answered[0]),
        "--path_to_all_results",
        str(tmp_path / "file" / "results.txt"),
    ]
    assert eval_pope.main(argv) == 2
    assert "cannot be written" in capsys.readouterr().err
