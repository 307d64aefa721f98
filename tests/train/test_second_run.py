"""What a second run into an output folder does: resume if it is the same, and say so, or else refuse."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llava.errors import UserError
from llava.model.checkpoint_files import CheckpointKind
from llava.train import llava_trainer
from llava.train.checkpoint import check_kind, find_checkpoint, refuse_inputs_inside
from llava.train.fingerprint import FINGERPRINT_FILE
from llava.train.train import train
from tests.train.conftest import weights_of

SAVING = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def state(out: Path, step: int) -> dict:
    return json.loads((out / f"checkpoint-{step}" / "trainer_state.json").read_text())


@pytest.fixture
def first(command, tmp_path) -> Path:
    """The output folder of a run of two steps."""
    train(argv=command("pretrain", **SAVING))
    return tmp_path / "out"


def test_the_same_run_again_says_that_nothing_is_left(command, first, caplog):
    before = (first / "mm_projector.bin").read_bytes()
    train(argv=command("pretrain", **SAVING))
    assert "all 2 steps of this run are done: nothing is left to train" in caplog.text
    assert (first / "mm_projector.bin").read_bytes() == before


def test_a_run_that_was_stopped_says_from_where_it_goes_on(command, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)

    class StoppedError(Exception):
        pass

    def stop(*_: object, **__: object):
        raise StoppedError

    flags = {**SAVING, "max_steps": 4}
    with monkeypatch.context() as patched:
        # As if it were killed behind its first checkpoint.
        patched.setattr(llava_trainer.SayWhereItBegins, "on_save", stop, raising=False)
        with pytest.raises(StoppedError):
            train(argv=command("pretrain", **flags))
    train(argv=command("pretrain", **flags))
    assert "resuming behind step 2 of 4: 2 are left" in caplog.text
    assert state(tmp_path / "out", 4)["global_step"] == 4


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"learning_rate": 2e-3}, "--learning_rate is 0.01 there and 0.002 here"),
        ({"max_steps": 4}, "--max_steps is 2 there and 4 here"),
        ({"optim": "sgd"}, "--optim is adamw_torch there and sgd here"),
        ({"mm_projector_type": "linear"}, "--mm_projector_type is mlp2x_gelu there and linear here"),
        ({"dataloader_drop_last": True}, "--dataloader_drop_last is False there and True here"),
        ({"gradient_accumulation_steps": 2}, "samples per update is 2 there and 4 here"),
    ],
)
def test_another_run_is_refused_in_one_sentence(command, first, flags, named):
    with pytest.raises(UserError) as caught:
        train(argv=command("pretrain", **SAVING, **flags))
    message = str(caught.value)
    assert named in message and len(message.splitlines()) == 1
    for way in ("another --output_dir", "--overwrite_output_dir True", "--resume_anyway True"):
        assert way in message


def test_other_data_are_noticed_under_the_same_name(command, first, data, tmp_path):
    path = tmp_path / "other.json"
    path.write_text((data / "captions.json").read_text())
    train(argv=command("pretrain", data_path=path, **SAVING))  # the same, elsewhere
    records = json.loads(path.read_text())
    records[0]["conversations"][1]["value"] = "Something else."
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match="the content of --data_path .* is .* there and .* here"):
        train(argv=command("pretrain", data_path=path, **SAVING))


def test_where_and_how_often_is_no_difference(command, first):
    train(argv=command("pretrain", **{**SAVING, "save_steps": 1}, logging_steps=5, dataloader_num_workers=1))


def test_a_run_that_resumes_logs_and_saves_as_often_as_it_is_told_to(command, first):
    often = {"save_steps": 1, "logging_steps": 3, "save_total_limit": 9}
    train(argv=command("pretrain", **{**SAVING, **often}, max_steps=6, resume_anyway=True))
    assert len(list(first.glob("checkpoint-*"))) == 5  # of step 2, and from then on of each
    logged = [line["step"] for line in state(first, 6)["log_history"] if "loss" in line]
    assert logged == [1, 2, 3, 6]


def test_a_run_begins_anew_or_goes_on_where_it_is_told_to(command, first, caplog):
    caplog.set_level(logging.INFO)
    flags = {**SAVING, "max_steps": 4, "learning_rate": 2e-3}
    train(argv=command("pretrain", **flags, resume_anyway=True))
    assert "resumed anyway" in caplog.text and "resuming behind step 2 of 4" in caplog.text
    assert state(first, 4)["global_step"] == 4
    caplog.clear()
    train(argv=command("pretrain", **{**SAVING, "save_steps": 1}, overwrite_output_dir=True))
    assert "resuming" not in caplog.text
    assert sorted(path.name for path in first.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert state(first, 2)["log_history"][0]["step"] == 1


def test_a_checkpoint_that_was_named_is_resumed_from(command, first, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = tmp_path / "other"
    flags = {**SAVING, "output_dir": other, "resume_from_checkpoint": first / "checkpoint-2"}
    train(argv=command("pretrain", **flags, max_steps=4, resume_anyway=True))
    assert "resuming behind step 2 of 4" in caplog.text
    assert (other / "mm_projector.bin").is_file()
    with pytest.raises(UserError, match="no whole checkpoint-<step> folder"):
        find_checkpoint(other, str(tmp_path))
    with pytest.raises(UserError, match="--resume_from_checkpoint is True, and '.*' holds no whole"):
        find_checkpoint(tmp_path, "True")
    assert find_checkpoint(first, "true") == find_checkpoint(first, None) == first / "checkpoint-2"


def test_a_run_that_is_not_to_resume_does_not(command, first, caplog):
    caplog.set_level(logging.INFO)
    flags = {**SAVING, "resume_from_checkpoint": False}
    with pytest.raises(UserError, match="is False, and '.*out' holds checkpoint-2: .*--overwrite_output_dir"):
        train(argv=command("pretrain", **flags))
    train(argv=command("pretrain", **flags, overwrite_output_dir=True))
    assert state(first, 2)["global_step"] == 2
    assert "nothing is left" not in caplog.text


def test_a_run_that_went_back_to_an_older_checkpoint_goes_on_from_there(command, tmp_path, caplog):
    out, kept = tmp_path / "out", tmp_path / "kept"
    flags = {**SAVING, "save_steps": 1, "max_steps": 4, "resume_anyway": True}
    train(argv=command("pretrain", **flags))
    shutil.copytree(out / "checkpoint-3", kept / "checkpoint-3")
    train(argv=command("pretrain", **{**flags, "max_steps": 8, "save_total_limit": 1}))
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-8"]
    back = {**flags, "max_steps": 5, "save_total_limit": 1}
    train(argv=command("pretrain", **back, resume_from_checkpoint=kept / "checkpoint-3"))
    assert "it is now replaced-checkpoint-8" in caplog.text
    assert {path.name for path in out.glob("*checkpoint-*")} == {"checkpoint-5", "replaced-checkpoint-8"}
    caplog.clear()
    caplog.set_level(logging.INFO)
    train(argv=command("pretrain", **{**back, "max_steps": 6}))
    assert "resuming behind step 5 of 6" in caplog.text
    assert state(out, 6)["global_step"] == 6


def test_a_checkpoint_without_a_fingerprint_is_resumed_with_a_warning(command, first, caplog):
    (first / "checkpoint-2" / FINGERPRINT_FILE).unlink()
    train(argv=command("pretrain", **SAVING, learning_rate=2e-3))
    assert "does not say what its run trained" in caplog.text


def test_no_checkpoint_is_written_where_none_is_asked_for(command, tmp_path):
    train(argv=command("pretrain", save_strategy="no"))
    assert list((tmp_path / "out").glob("checkpoint-*")) == []


@pytest.mark.parametrize(
    ("file", "kind", "other"),
    [
        ("adapter_config.json", CheckpointKind.FULL, "a LoRA adapter"),
        ("non_lora_trainables.bin", CheckpointKind.PROJECTOR, "a LoRA adapter"),
        ("mm_projector.bin", CheckpointKind.FULL, "a projector"),
        ("model-00001-of-00002.safetensors", CheckpointKind.LORA, "a full checkpoint"),
        ("pytorch_model.bin", CheckpointKind.PROJECTOR, "a full checkpoint"),
    ],
)
def test_a_result_of_another_kind_is_not_mixed_with(tmp_path, file, kind, other):
    (tmp_path / file).write_text("")
    with pytest.raises(UserError, match=f"holds {file}, of {other}, and this run trains {kind.value}"):
        check_kind(tmp_path, kind)
    (tmp_path / file).unlink()
    (tmp_path / "notes.txt").write_text("")
    check_kind(tmp_path, kind)


def test_a_full_run_does_not_go_where_a_projector_is(command, first):
    with pytest.raises(UserError, match="holds mm_projector.bin|it holds a projector"):
        train(argv=command("finetune", save_strategy="no"))
    train(argv=command("finetune", save_strategy="no", overwrite_output_dir=True))
    assert not (first / "mm_projector.bin").exists()
    assert (first / "model.safetensors").is_file()


def test_a_run_that_reads_what_lies_in_its_output_folder_is_refused(command, data, tmp_path):
    out = tmp_path / "out"
    train(argv=command("finetune", **SAVING))
    train(argv=command("pretrain", output_dir=out / "stage1"))
    shutil.copy(data / "turns.json", out)
    (tmp_path / "link").symlink_to(out / "stage1")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for flags in (
        {"pretrain_mm_mlp_adapter": out / "stage1" / "mm_projector.bin"},
        {"pretrain_mm_mlp_adapter": tmp_path / "link" / "mm_projector.bin"},
        {"model_name_or_path": out / "checkpoint-2"},
        {"data_path": out / "turns.json"},
    ):
        (flag, source), *_ = flags.items()
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"--{flag} {source} is read, and lies where --output_dir"):
                train(argv=command("finetune", **flags, overwrite_output_dir=overwrite))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_is_read_by_way_of_links_is_found_out(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    link = tmp_path / "out" / "checkpoint-1"
    link.symlink_to(tmp_path / "base")
    with pytest.raises(UserError, match="--model_name_or_path"):
        refuse_inputs_inside(tmp_path / "out", {"--model_name_or_path": link})
    (tmp_path / "base" / "deep").mkdir()
    (tmp_path / "deep").symlink_to(tmp_path / "base" / "deep")
    (tmp_path / "base" / "data.json").touch()
    others = {
        "--model_name_or_path": tmp_path / "out" / ".." / "base",
        "--data_path": tmp_path / "deep" / ".." / "data.json",  # there is no tmp_path / "data.json"
        "--vision_tower": "org/clip",
    }
    assert others["--data_path"].is_file()
    refuse_inputs_inside(tmp_path / "out", others)


# Space


@pytest.fixture
def free(monkeypatch) -> Callable[[int], None]:
    def leave(count: int) -> None:
        monkeypatch.setattr("llava.train.disk_space.free_bytes", lambda folder: count)

    return leave


def test_a_result_that_does_not_fit_is_refused_before_training(command, free, tmp_path):
    free(1000)
    with pytest.raises(UserError, match="the result takes about .* GiB, and '.*out' has .* GiB left"):
        train(argv=command("finetune"))
    assert not weights_of(tmp_path / "out")


def test_a_checkpoint_that_would_take_the_results_space_is_left_out(command, free, tmp_path, caplog):
    train(argv=command("finetune", output_dir=tmp_path / "size"))
    size = (tmp_path / "size" / "model.safetensors").stat().st_size
    free(int(2.5 * size))  # a checkpoint takes three times of the weights
    train(argv=command("finetune", **SAVING))
    assert "no checkpoint is written, and the run cannot be resumed" in caplog.text
    assert "checkpoint-2 is not written: it takes about" in caplog.text
    assert weights_of(tmp_path / "out")
    assert list((tmp_path / "out").glob("checkpoint-*")) == []


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_checkpoint_that_fails_costs_nothing_else(command, tmp_path, caplog, monkeypatch, stage):
    def full(*_: object):
        raise RuntimeError("[enforce fail at inline_container.cc:664] unexpected pos 1 vs 2\nbacktrace")

    monkeypatch.setattr(llava_trainer.LLaVATrainer, "_save_optimizer_and_scheduler", full)
    train(argv=command(stage, **{**SAVING, "save_steps": 1}))
    said = [record.getMessage() for record in caplog.records if "is not written" in record.getMessage()]
    assert [sentence.split()[0] for sentence in said] == ["checkpoint-1", "checkpoint-2"]
    assert all("the run goes on: [enforce fail" in line and "backtrace" not in line for line in said)
    out = tmp_path / "out"
    assert weights_of(out)
    assert not list(out.glob("checkpoint-*")) and not (out / "unfinished").exists()


def test_the_result_is_written_before_the_last_checkpoint(command, tmp_path, monkeypatch):
    seen = []

    def look(self, folder: str):
        seen.append((tmp_path / "out" / "model.safetensors").exists())
        raise OSError("No space left on device")

    monkeypatch.setattr(llava_trainer.LLaVATrainer, "_save_optimizer_and_scheduler", look)
    train(argv=command("finetune", **{**SAVING, "save_steps": 1}))
    assert seen == [False, True]
