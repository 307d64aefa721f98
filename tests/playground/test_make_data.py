import json
import re
from pathlib import Path

from playground.shapes.make_data import main, stage1_sample, stage2_sample
from playground.shapes.questions import TURNS
from playground.shapes.world import TRAIN, Scene


def test_stage1_is_a_request_and_a_description():
    sample = stage1_sample(4, pictures=3)
    human, gpt = sample["conversations"]
    assert sample["image"] == "00000001.jpg"
    assert human["from"] == "human" and human["value"].startswith("<image>\n")
    assert gpt["from"] == "gpt" and Scene.from_seed(TRAIN[1]).things[0].name in gpt["value"]


def test_stage2_has_one_batch_of_many_turns_and_two_of_one():
    samples = [stage2_sample(number, pictures=60, batch=10) for number in range(60)]
    turns = [len(sample["conversations"]) // 2 for sample in samples]
    assert set(turns[10:30] + turns[40:]) == {1}
    assert all(TURNS - 3 <= count <= TURNS for count in turns[:10] + turns[30:40])
    for sample in samples:
        placeholders = ["<image>" in turn["value"] for turn in sample["conversations"]]
        assert placeholders[0] and not any(placeholders[1:])


def test_a_picture_returns_with_other_questions():
    first, second = (stage2_sample(number, pictures=10, batch=100) for number in (1, 11))
    assert first["image"] == second["image"]
    assert first["conversations"] != second["conversations"]
    assert first["id"] != second["id"]


def test_files_are_llavas_lists(tmp_path, capsys):
    assert not main(["--output", str(tmp_path), "--pictures", "2"])
    for name in ("captions.json", "questions.json"):
        samples = json.loads((tmp_path / name).read_text())
        assert [sample["id"] for sample in samples] == ["shapes-0", "shapes-1"]
        assert all((tmp_path / "pictures" / sample["image"]).exists() for sample in samples)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["captions.json", "pictures", "questions.json"]
    assert "2 pictures, captions and conversations" in capsys.readouterr().out


def test_the_tutorial_names_what_is_there(tmp_path, monkeypatch):
    page = Path(__file__).resolve().parents[2] / "docs" / "finetune.md"
    named = set(re.findall(r"my-data/[\w./-]*\w", page.read_text(encoding="utf-8")))
    made_by_training = {"my-data/lora", "my-data/merged"}
    assert made_by_training < named
    monkeypatch.chdir(tmp_path)
    assert not main(["--output", "my-data", "--pictures", "1"])
    assert [path for path in sorted(named - made_by_training) if not Path(path).exists()] == []
