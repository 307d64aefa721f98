"""What a run says at its end: where its result is, and how to ask it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from llava.conversation import clip_text
from llava.data.records import Record, image_path
from llava.errors import UserError
from llava.model.checkpoint_files import PROJECTOR_FILE, CheckpointKind
from llava.train.arguments import DataArguments, ModelArguments, TrainingArguments
from llava.train.checkpoint import moved_projector

ANY_QUESTION = "What is shown in the image?"


def describe_result(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    records: Sequence[Record],
) -> str:
    """Return a line for the log, which ends in a command that asks the result about an image of the data.

    Args:
        model_args: Of a run whose result has been saved.
        data_args: Likewise.
        training_args: Likewise.
        records: What it was trained on.
    """
    output = Path(training_args.output_dir)
    if training_args.saves is CheckpointKind.PROJECTOR and not (output / PROJECTOR_FILE).exists():
        return f"the projector is in {moved_projector(output)}, for --pretrain_mm_mlp_adapter"
    example = next(_examples(records, data_args.image_folder), None)
    if model_args.vision_tower is None or example is None:
        return f"the result is in {output}"
    image, question = example
    words = ["llava", "ask", "--model-path", str(output)]
    if training_args.saves is not CheckpointKind.FULL:
        words += ["--model-base", model_args.model_name_or_path]
    if training_args.bits in (4, 8):
        words.append(f"--load-{training_args.bits}bit")
    return f"the result is in {output}; ask it: {shlex.join([*words, '--image', str(image), question])}"


def _examples(records: Sequence[Record], image_folder: str | None) -> Iterator[tuple[Path, str]]:
    """Yield images that are there, and the first line of what is asked about each."""
    for record in records:
        if "image" not in record:
            continue
        try:
            image = image_path(record, image_folder)
            is_there = image.is_file()
        except (UserError, OSError):  # left out by --on_bad_image skip
            continue
        if is_there:
            asked = (clip_text(turn["value"]) for turn in record["conversations"] if turn["from"] == "human")
            yield image, next(filter(None, asked), ANY_QUESTION).splitlines()[0]
