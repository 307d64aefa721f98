"""Train a LLaVA model: ``python -m llava.train.train --help`` lists the arguments, which are LLaVA's."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers

from llava.conversation import conv_templates
from llava.data.records import Record, check_image_folder, check_records, has_images, read_records
from llava.errors import UserError
from llava.folder_lock import lock_folder
from llava.model.adapter import warn_of_other_base
from llava.model.checkpoint_files import CheckpointKind
from llava.model.placement import attention_of_any_length
from llava.model.saving import check_output_folder
from llava.train.argument_checks import check_fills_a_batch
from llava.train.arguments import (
    DataArguments,
    ModelArguments,
    TrainingArguments,
    given_options,
    parse_arguments,
)
from llava.train.checkpoint import (
    check_kind,
    check_resumable,
    clear_output,
    find_checkpoint,
    refuse_inputs_inside,
)
from llava.train.collator import DataCollatorForSupervisedDataset
from llava.train.data import LazySupervisedDataset, make_supervised_data_module
from llava.train.fingerprint import check_same_run, fingerprint_of
from llava.train.llava_trainer import LLaVATrainer
from llava.train.lora import find_all_linear_names
from llava.train.model_setup import build_model, check_reducer, read_base, template_of_version
from llava.train.preprocess import preprocess, preprocess_multimodal
from llava.train.result import describe_result
from llava.train.resume_state import check_resume_state
from llava.utils import (
    exit_on_user_error,
    on_first_process,
    process_rank,
    setup_logging,
)

logger = logging.getLogger(__name__)

REPORT_DELAY_S = 10.0

__all__ = [
    "DataArguments",
    "DataCollatorForSupervisedDataset",
    "LLaVATrainer",
    "LazySupervisedDataset",
    "ModelArguments",
    "TrainingArguments",
    "find_all_linear_names",
    "main",
    "make_supervised_data_module",
    "preprocess",
    "preprocess_multimodal",
    "safe_save_model_for_hf_trainer",
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
    with alone(training_args.output_dir), attention_of_any_length():
        _train(model_args, data_args, training_args, given_options(argv), attn_implementation)


def safe_save_model_for_hf_trainer(trainer: LLaVATrainer, output_dir: str) -> None:
    """Save what a trainer has trained: LLaVA's name for ``trainer.save_model``."""
    trainer.save_model(output_dir)


@contextmanager
def alone(folder: str) -> Iterator[None]:
    """Keep other launches out of an output folder, which is made; no process goes on before the first has it.

    Raises:
        UserError: In every process, if another launch has it, or it cannot be written.
    """
    with ExitStack() as held:

        def claim() -> None:
            check_output_folder(folder)
            held.enter_context(lock_folder(folder, "--output_dir"))

        on_first_process(claim)
        yield


def _train(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: TrainingArguments,
    given: frozenset[str],
    attn_implementation: str | None,
) -> None:
    """Train in an output folder that is this run's alone."""
    template = conv_templates[template_of_version(model_args.version)]
    base = read_base(model_args, data_args, given)
    refuse_inputs_inside(
        training_args.output_dir,
        {
            "--model_name_or_path": base.folder,
            "--vision_tower": model_args.vision_tower,
            "--pretrain_mm_mlp_adapter": model_args.pretrain_mm_mlp_adapter,
            "--data_path": data_args.data_path,
        },
    )
    check_reducer(model_args, training_args)
    records = read_data(data_args, has_tower=model_args.vision_tower is not None)
    check_records(records, data_args.image_folder, template, data_args.on_bad_image)
    check_fills_a_batch(training_args, len(records))
    fingerprint = on_first_process(lambda: fingerprint_of(model_args, data_args, training_args))
    checkpoint = on_first_process(lambda: choose_checkpoint(model_args, training_args, fingerprint))
    model, tokenizer = build_model(model_args, data_args, training_args, base, attn_implementation)
    data = make_supervised_data_module(
        tokenizer, data_args, template=template, text_source=model_args.mm_text_source, records=records
    )
    trainer = LLaVATrainer(
        model=model, args=training_args, processing_class=tokenizer, fingerprint=fingerprint, **data
    )
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_result()
    if process_rank() == 0:
        logger.info(describe_result(model_args, data_args, training_args, records))


def choose_checkpoint(
    model_args: ModelArguments, training_args: TrainingArguments, fingerprint: dict[str, Any]
) -> Path | None:
    """Return the checkpoint to resume from, or ``None`` to begin anew; then the output folder is cleared.

    Raises:
        UserError: If the checkpoint is of another run, or the output folder holds a result of another kind.
    """
    folder, kind = training_args.output_dir, training_args.saves
    if training_args.overwrite_output_dir:
        clear_output(folder)
    checkpoint = find_checkpoint(folder, training_args.resume_from_checkpoint)
    if checkpoint is not None:
        check_resumable(checkpoint, kind, training_args.world_size, bool(training_args.deepspeed))
        check_same_run(checkpoint, fingerprint, anyway=training_args.resume_anyway)
        check_resume_state(checkpoint, bool(training_args.deepspeed))
        if kind is CheckpointKind.LORA:
            warn_of_other_base(checkpoint, model_args.model_name_or_path)
    check_kind(folder, kind)
    return checkpoint


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
