"""What a run may go on from, and how a checkpoint gets its name."""

from pathlib import Path

import pytest

from llava.errors import UserError
from llava.model.checkpoint_files import CheckpointKind
from llava.train.checkpoint import (
    check_resumable,
    finish_checkpoint,
    last_checkpoint,
    remove_older,
    remove_unfinished,
    unfinished_folder,
)


def write_checkpoint(folder: Path, shares: int = 0) -> Path:
    """Write the files of a checkpoint that say whether it is whole and who wrote it."""
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").touch()
    (folder / "model.safetensors").touch()
    for rank in range(shares):
        share = folder / "global_step7" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        share.parent.mkdir(exist_ok=True)
        share.touch()
    return folder


def test_the_newest_whole_checkpoint_is_the_last_one(tmp_path: Path):
    assert last_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path / "checkpoint-9")
    newest = write_checkpoint(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-11").mkdir()  # without the trainer's state
    write_checkpoint(tmp_path / "checkpoint-best")
    write_checkpoint(unfinished_folder(tmp_path) / "checkpoint-12")
    assert last_checkpoint(tmp_path) == newest


def test_a_checkpoint_gets_its_name_when_it_is_written(tmp_path: Path):
    write_checkpoint(unfinished_folder(tmp_path) / "checkpoint-5", shares=2)
    (tmp_path / "checkpoint-5").mkdir()  # of an older run that was killed
    finish_checkpoint(tmp_path, {})
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert len(list((tmp_path / "checkpoint-5").rglob("*.pt"))) == 2
    assert not unfinished_folder(tmp_path).exists()
    remove_unfinished(tmp_path)  # nothing is left to remove


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_is_the_last_checkpoint_though_there_were_later_ones(tmp_path: Path):
    write_checkpoint(tmp_path / "checkpoint-4")
    for _ in range(2):
        write_checkpoint(tmp_path / "checkpoint-20")
        (tmp_path / "checkpoint-30").mkdir()  # cut short
        write_checkpoint(unfinished_folder(tmp_path) / "checkpoint-6")
        finish_checkpoint(tmp_path, {})
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    replaced = ["replaced-checkpoint-20", "replaced-checkpoint-20-2", "replaced-checkpoint-6"]
    assert names_in(tmp_path) == ["checkpoint-4", "checkpoint-6", *replaced]
    assert (tmp_path / "replaced-checkpoint-6" / "trainer_state.json").is_file()


@pytest.mark.parametrize(("kept", "expected"), [(None, 3), (0, 3), (1, 1), (2, 2), (5, 3)])
def test_the_last_checkpoints_are_kept(tmp_path: Path, kept: int | None, expected: int):
    for name in ("checkpoint-8", "checkpoint-9", "checkpoint-10", "checkpoint-2-of-mine"):
        write_checkpoint(tmp_path / name)
    remove_older(tmp_path, kept)
    left = ["checkpoint-10", "checkpoint-9", "checkpoint-8"][:expected]
    assert names_in(tmp_path) == sorted([*left, "checkpoint-2-of-mine"])


@pytest.mark.parametrize(
    ("shares", "processes", "with_deepspeed"), [(0, 1, False), (0, 4, False), (2, 2, True)]
)
def test_what_was_written_alike_can_be_continued(
    tmp_path: Path, shares: int, processes: int, with_deepspeed: bool
):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-1", shares)
    check_resumable(checkpoint, CheckpointKind.FULL, processes, with_deepspeed)


@pytest.mark.parametrize(
    ("shares", "processes", "with_deepspeed", "message"),
    [
        (
            8,
            4,
            True,
            "was written by 8 processes under DeepSpeed, and 4 under DeepSpeed cannot resume from it",
        ),
        (2, 2, False, "was written by 2 processes under DeepSpeed, and a run without it cannot resume"),
        (0, 2, True, "was written without DeepSpeed, and 2 under DeepSpeed cannot resume from it"),
    ],
)
def test_what_was_written_otherwise_is_refused(
    tmp_path: Path, shares: int, processes: int, with_deepspeed: bool, message: str
):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-1", shares)
    with pytest.raises(UserError, match=message):
        check_resumable(checkpoint, CheckpointKind.FULL, processes, with_deepspeed)


def test_a_checkpoint_of_another_kind_of_run_is_refused(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-1")
    with pytest.raises(UserError, match="it holds a full checkpoint, and this run trains a LoRA adapter"):
        check_resumable(checkpoint, CheckpointKind.LORA, 1, False)


def test_weights_that_deepspeed_does_not_gather_are_in_its_shares(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint-1", shares=2)
    (checkpoint / "model.safetensors").unlink()
    check_resumable(checkpoint, CheckpointKind.FULL, 2, True)
