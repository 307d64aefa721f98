"""Train a LLaVA model: ``python -m llava.train.train --help`` lists the arguments, which are LLaVA's."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import torch
import transformers

from llava.conversation import conv_templates
from llava.data.records import Record, check_image_folder, check_records, has_images, read_records
from llava.errors import UserError
from llava.folder_lock import lock_folder
from llava.model.adapter import warn_of_other_base
from llava.model.checkpoint_files import CheckpointKind
from llava.train.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    given_options,
    parse_arguments,
)
from llava.train.checkpoint import check_output_folder, check_resumable, last_checkpoint, save_final
from llava.train.collator import DataCollatorForSupervisedDataset
from llava.train.data import LazySupervisedDataset, make_supervised_data_module
from llava.train.llava_trainer import LLaVATrainer
from llava.train.model_setup import build_model, read_base, template_of_version
from llava.train.preprocess import preprocess, preprocess_multimodal
from llava.train.result import describe_result
from llava.utils import exit_on_user_error, process_rank, refuse_overwriting, setup_logging

logger = logging.getLogger(__name__)

REPORT_DELAY_S = 10.0

__all__ = [
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LLaVATrainer",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "main",
    "make_supervised_data_module",
    "preprocess",
    "preprocess_multimodal",
    "train",
]


def train(attn_implementation: str | None = None, argv: Sequence[str] | None = None) -> None:
    """Train as the command line says, from the last complete checkpoint of the output folder if it has one.

    Args:
        attn_implementation: ``flash_attention_2`` to ask for it.
        argv: Arguments; by default those of this process.

    Raises:
        UserError: If an argument or a record is not acceptable; before the model is loaded where possible.
    """
    model_args, data_args, training_args = parse_arguments(argv)
    inputs = (model_args.model_name_or_path, model_args.vision_tower)
    refuse_overwriting("--output_dir", Path(training_args.output_dir), *inputs)
    check_output_folder(training_args.output_dir)
    with (
        lock_folder(training_args.output_dir, "--output_dir") if training_args.should_save else nullcontext()
    ):
        _train(model_args, data_args, training_args, given_options(argv), attn_implementation)


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    given: frozenset[str],
    attn_implementation: str | None,
) -> None:
    """Train in an output folder that is this run's alone."""
    checkpoint = last_checkpoint(training_args.output_dir)
    if checkpoint is not None:
        under_deepspeed = bool(training_args.deepspeed)
        check_resumable(checkpoint, training_args.saves, training_args.world_size, under_deepspeed)
        if training_args.saves is CheckpointKind.LORA and process_rank() == 0:
            warn_of_other_base(checkpoint, model_args.model_name_or_path)
    template = conv_templates[template_of_version(model_args.version)]
    base = read_base(model_args, data_args, given)
    records = read_data(data_args, has_tower=model_args.vision_tower is not None)
    check_records(records, data_args.image_folder, template, data_args.on_bad_image)
    model, tokenizer = build_model(model_args, data_args, training_args, base, attn_implementation)
    data = make_supervised_data_module(
        tokenizer, data_args, template=template, text_source=model_args.mm_text_source, records=records
    )
    trainer = LLaVATrainer(model=model, args=training_args, processing_class=tokenizer, **data)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_final(trainer)
    if process_rank() == 0:
        logger.info(describe_result(model_args, data_args, training_args, records))


def read_data(data_args: DataArguments, has_tower: bool) -> list[Record]:
    """Read the data file, and make sure that its images can be used.

    Args:
        data_args: Paths of data and images.
        has_tower: Whether the model will see images.

    Raises:
        UserError: If the file is no list of records, or has images that nothing could see.
        MissingFileError: If the file or the image folder is missing.
    """
    if data_args.data_path is None:
        raise UserError("--data_path is needed: a JSON list of records")
    records = read_records(data_args.data_path)
    if has_images(records):
        if not has_tower:
            raise UserError(f"{data_args.data_path} has images: give --vision_tower, a CLIP folder or hub id")
        check_image_folder(data_args.image_folder)
    return records


@exit_on_user_error
def main(attn_implementation: str | None = None) -> None:
    """Run `train` as a command."""
    setup_logging()
    transformers.logging.disable_progress_bar()
    # Meant for the developers of DeepSpeed and peft, and repeated at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|transformers")
    try:
        train(attn_implementation)
        leave_processes()
    except UserError as error:
        if process_rank():
            # The first process makes most mistakes too; once it has said so, the launcher ends the others.
            time.sleep(REPORT_DELAY_S)
        # A loader's worker process hands over its whole traceback; its last line is the sentence.
        raise type(error)(
            str(error).strip().splitlines()[-1].removeprefix(f"{_full_name(error)}: ")
        ) from error


def leave_processes() -> None:
    """End what connects the processes of a launch."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def end(code: int) -> NoReturn:
    """End this process; one that a launcher started skips the interpreter's own end.

    There threads of gloo, which still hold tensors as long as DeepSpeed keeps them alive, took a process down
    now and then after all was done (github.com/pytorch/pytorch/pull/179291).
    """
    if "RANK" in os.environ:
        atexit._run_exitfuncs()  # of reporters, logging and processes that read data
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _full_name(error: Exception) -> str:
    """Return an error's type as tracebacks write it."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


if __name__ == "__main__":
    end(main())
