"""transformers' Trainer with LLaVA's sampler, projector rate and checkpoints, under DeepSpeed and without."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.integrations.deepspeed import deepspeed_load_checkpoint
from transformers.trainer import SCHEDULER_NAME
from transformers.trainer_utils import SaveStrategy, has_length

from llava.constants import IMAGE_TOKEN_INDEX
from llava.errors import UserError
from llava.model.adapter import adapter_file, check_adapter
from llava.model.checkpoint_files import (
    NEWLINE,
    NON_LORA_FILE,
    PROJECTOR_FILE,
    TOWER,
    CheckpointKind,
    open_weights,
)
from llava.model.sharding import copy_gathered
from llava.model.splice import count_supervised
from llava.train.argument_checks import GROUP_BY_LENGTH, name_optimizer, naming_option
from llava.train.checkpoint import (
    check_learned,
    finish_checkpoint,
    load_parts,
    remove_older,
    remove_unfinished,
    save_final,
    save_lora,
    save_projector,
    unfinished_folder,
)
from llava.train.disk_space import check_space, lacks_space, sizes_of
from llava.train.meter import TrainingMeter
from llava.train.resume_state import check_optimizer, check_scheduler
from llava.utils import on_first_process

logger = logging.getLogger(__name__)

PROJECTOR = "mm_projector"
RECORDS_SHOWN = 8


def split_to_even_chunks(indices: Sequence[int], lengths: Sequence[int], num_chunks: int) -> list[list[int]]:
    """Deal samples out to processes so that each gets as many and about as much work.

    Args:
        indices: Samples, longest first.
        lengths: Length of every sample of the data set.
        num_chunks: Processes.
    """
    if len(indices) % num_chunks:
        return [list(indices[rank::num_chunks]) for rank in range(num_chunks)]
    chunks: list[list[int]] = [[] for _ in range(num_chunks)]
    loads = [0] * num_chunks
    size = len(indices) // num_chunks
    for index in indices:
        open_ranks = (rank for rank in range(num_chunks) if len(chunks[rank]) < size)
        rank = min(open_ranks, key=loads.__getitem__)
        chunks[rank].append(index)
        loads[rank] += lengths[index]
    return chunks


class LengthGroupedSampler(Sampler[int]):
    """Orders samples so that a batch holds similar lengths and, if asked for, one modality.

    Args:
        batch_size: Samples per process and step.
        world_size: Processes times gradient accumulation.
        lengths: Length per sample; if ``group_by_modality``, negative for text alone.
        seed: Of the first epoch's order; every further epoch adds 1.
        group_by_modality: Whether modalities are kept apart.

    Raises:
        ValueError: If a length is 0, which says nothing about the modality.
    """

    def __init__(
        self,
        batch_size: int,
        world_size: int,
        lengths: Sequence[int],
        *,
        seed: int = 0,
        group_by_modality: bool = False,
    ) -> None:
        if group_by_modality and 0 in lengths:
            raise ValueError(f"sample {list(lengths).index(0)} has length 0; signs tell modalities apart")
        self.batch_size = batch_size
        self.world_size = world_size
        self.lengths = [abs(length) for length in lengths]
        self.groups = [list(range(len(lengths)))]
        if group_by_modality:
            by_sign = [
                [i for i, length in enumerate(lengths) if (length > 0) is shown] for shown in (True, False)
            ]
            self.groups = [group for group in by_sign if group]
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is to follow; a resumed run gets the order it was killed in."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yield the samples of an epoch in order."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        groups = [self._megabatches(group, generator) for group in self.groups]
        if len(groups) == 1:
            ordered = groups[0]
        else:
            # A modality's last megabatch may be incomplete: those mix, at the very end.
            whole = [megabatch for group in groups for megabatch in group[:-1]]
            rest = sorted(index for group in groups for index in group[-1])
            ordered = [whole[i] for i in torch.randperm(len(whole), generator=generator)] + [rest]
        return (index for megabatch in ordered for index in megabatch)

    def _megabatches(self, group: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        """Shuffle one modality's samples, and order each step's share of them by length and process."""
        shuffled = [group[i] for i in torch.randperm(len(group), generator=generator)]
        size = self.world_size * self.batch_size
        megabatches = []
        for start in range(0, len(shuffled), size):
            megabatch = sorted(shuffled[start : start + size], key=lambda i: self.lengths[i], reverse=True)
            chunks = split_to_even_chunks(megabatch, self.lengths, self.world_size)
            megabatches.append([index for chunk in chunks for index in chunk])
        return megabatches


class LogLines(TrainerCallback):
    """Reports progress as plain log lines."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started, self.first_step = time.monotonic(), state.global_step

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Write a line: step, values, and the time it will still take."""
        if not state.is_world_process_zero or not logs:
            return
        elapsed = time.monotonic() - self.started
        done = state.global_step - self.first_step
        left = elapsed / done * (state.max_steps - state.global_step) if done else 0.0
        values = "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if isinstance(value, float))
        logger.info("step %d/%d  %s  (%.0f s left)", state.global_step, state.max_steps, values, left)


class SayWhereItBegins(TrainerCallback):
    """Says that a run resumes, from where, and how much is left."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say it; nothing where a run begins."""
        done, steps = state.global_step, state.max_steps
        if not (done and state.is_world_process_zero):
            return
        if done < steps:
            logger.info("resuming behind step %d of %d: %d are left", done, steps, steps - done)
        else:
            logger.warning(
                "all %d steps of this run are done: nothing is left to train. Another run needs another "
                "--output_dir, or --overwrite_output_dir True",
                steps,
            )


class StepsAsGiven(TrainerCallback):
    """Lets a run that resumes log and save as often as its command line says, not as its checkpoint does."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Replace what the checkpoint's state says."""
        state.compute_steps(args, state.max_steps)


class LLaVATrainer(Trainer):
    """Trainer for a LLaVA model; `TrainingArguments` says what differs from transformers'.

    Args:
        *args: Of transformers' Trainer.
        fingerprint: Of the run, for its checkpoints.
        **kwargs: As ``args``.
    """

    def __init__(self, *args: Any, fingerprint: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self._grouped_sampler: LengthGroupedSampler | None = None
        self._fingerprint = fingerprint or {}
        self._result_is_written = False
        self._left_out = 0  # micro-batches whose loss was not finite
        self._loss_of_epoch: Tensor | None = None
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False  # a loss that is not finite ends the run, or counts nothing
        self.add_callback(SayWhereItBegins())
        self.add_callback(StepsAsGiven())
        if self.args.loss_average == "micro_batch":
            # Then the loss of a micro-batch is its own mean, divided by the number of micro-batches.
            self.model_accepts_loss_kwargs = False
        if self.args.disable_tqdm:
            self.remove_callback(PrinterCallback)
            self.add_callback(LogLines())
        self.meter = TrainingMeter()
        self.meter.watch(self.model.prompt_encoder)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        by_modality = self.args.group_by_modality_length
        is_grouped = by_modality or self.args.train_sampling_strategy == GROUP_BY_LENGTH
        if not is_grouped or dataset is None or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        # transformers' own sampler would make every sample to measure it, and know neither seed nor epoch.
        self._grouped_sampler = LengthGroupedSampler(
            self.args.train_batch_size,
            self.args.world_size * self.args.gradient_accumulation_steps,
            dataset.modality_lengths if by_modality else dataset.lengths,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
            group_by_modality=by_modality,
        )
        return self._grouped_sampler

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:
        """Train an epoch or, after a stop, what is left of it.

        A run that was over trains nothing more. The sampler is told the epoch here, because after a stop it
        is wrapped so deeply that neither transformers nor accelerate reaches it.
        """
        if self.state.global_step >= self.state.max_steps:
            return
        if self._grouped_sampler is not None:
            self._grouped_sampler.set_epoch(epoch)
        self._loss_of_epoch = None
        super()._run_epoch(epoch=epoch, **kwargs)
        self._check_epoch(epoch)

    def _check_epoch(self, epoch: int) -> None:
        """Refuse to go on where an epoch has taught nothing.

        Raises:
            UserError: If no loss of it was above 0, in any process.
        """
        if self._loss_of_epoch is None:  # its steps were done before
            return
        if not self.accelerator.gather(self._loss_of_epoch.reshape(1)).any():
            raise UserError(
                f"epoch {epoch + 1} has taught nothing: no token of its records was supervised. Either "
                "--model_max_length cuts all answers off, or no image could be read; "
                "python -m llava.data.check_data says which"
            )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer; a rate of its own gives the projector parameter groups of its own.

        Raises:
            UserError: If the optimizer lacks a setting, or accepts no such model or value.
        """
        if self.optimizer is not None:  # made before, or by DeepSpeed as its configuration says
            return self.optimizer
        with naming_option(name_optimizer(self.args)):
            optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
        if self.args.mm_projector_lr is not None:
            parameters = (self.model if model is None else model).named_parameters()
            projector = {id(parameter) for name, parameter in parameters if PROJECTOR in name}
            for group in list(optimizer.param_groups):
                own = [parameter for parameter in group["params"] if id(parameter) in projector]
                if own:
                    group["params"] = [p for p in group["params"] if id(p) not in projector]
                    optimizer.add_param_group({**group, "params": own, "lr": self.args.mm_projector_lr})
        # A group of nothing, such as the biases of a model that has none, is more than DeepSpeed can split.
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Return the micro-batches of an update and, for a mean over tokens, how many are supervised.

        Visual tokens can push labels beyond the longest sample; those that are lost do not count.
        """
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if isinstance(count, Tensor):
            count = count - self._count_lost(batches, device)
        return batches, count

    def _count_lost(self, batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
        """Count the supervised labels of an update that are cut off, over all processes."""
        risk = torch.tensor([any(map(self._may_be_cut, batches))], device=device)
        # All processes look or none does, since weights may be split over them.
        if not self.accelerator.gather(risk).any():
            return torch.zeros((), dtype=torch.long, device=device)
        lost = torch.zeros(1, dtype=torch.long, device=device)
        with torch.no_grad(), self.meter.paused():
            for batch in map(self._prepare_inputs, batches):
                inputs = [
                    batch[name] for name in ("attention_mask", "labels", "images", "image_sizes", "texts")
                ]
                mask, labels, images, sizes, texts = inputs
                spliced = self.model.prepare_inputs_labels_for_multimodal(
                    batch["input_ids"], None, mask, None, labels, images, sizes, texts=texts
                )[-1]
                lost += count_supervised(labels) - count_supervised(spliced)
        return self.accelerator.gather(lost).sum() if self.args.average_tokens_across_devices else lost.sum()

    def _may_be_cut(self, batch: dict[str, Any]) -> bool:
        """Tell whether visual tokens, were they as many as can be, make a sample too long."""
        limit = getattr(self.model.config, "tokenizer_model_max_length", None)
        tower = self.model.get_vision_tower()
        if limit is None or tower is None or "images" not in batch:
            return False
        images = (batch["input_ids"] == IMAGE_TOKEN_INDEX).sum(dim=1)
        longest = batch["attention_mask"].sum(dim=1) + images * (tower.num_patches + 1)
        return bool((longest > limit).any())

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss; a step in which nothing is supervised (all answers cut off) counts 0, not 0/0.

        Raises:
            UserError: If it is not finite, more often than ``skip_nonfinite`` allows.
        """
        records = inputs.pop("records", ())
        count = kwargs.get("num_items_in_batch")
        if count is not None:
            kwargs["num_items_in_batch"] = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        compute = super().compute_loss
        loss = self.meter.read(inputs, lambda: compute(model, inputs, *args, **kwargs))
        if not torch.isfinite(loss):
            loss = self._without(loss, records)
        so_far = loss.detach().abs()
        self._loss_of_epoch = so_far if self._loss_of_epoch is None else self._loss_of_epoch + so_far
        return loss

    def _without(self, loss: Tensor, records: Sequence[str]) -> Tensor:
        """Return a loss that teaches nothing instead of one that is not finite, if that is allowed.

        Raises:
            UserError: If it is not.
        """
        step, allowed = self.state.global_step + 1, self.args.skip_nonfinite
        sentence = f"step {step}: the loss is {loss.item()} for {_name_records(records)}"
        if self._left_out == allowed:
            before = f" after {allowed} others that were left out" if allowed else ""
            raise UserError(
                f"{sentence}{before}. Nothing of it was learned or saved. A lower --learning_rate may help, "
                "or --bf16 True instead of --fp16, or --skip_nonfinite N, which leaves out N micro-batches"
            )
        self._left_out += 1
        logger.warning("%s; left out, %d of at most %d", sentence, self._left_out, allowed)
        # Gradients of 0 for all that learns, so that the other processes are not waited for in vain.
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return sum((parameter.flatten()[:1].sum() * 0 for parameter in learning), loss.new_zeros(()))

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # Arithmetic of float16 lets gradients overflow now and then, and leaves out such steps by itself.
        if not self.args.fp16 and norm is not None and not math.isfinite(norm):
            raise UserError(
                f"step {self.state.global_step + 1}: the gradient is {float(norm)}, though the loss is "
                "finite. Nothing of it was saved; a lower --learning_rate may help"
            )
        return norm

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, and beside the loss, and at the end, what was read since the last time."""
        if "loss" in logs or "train_runtime" in logs:
            logs = logs | self.meter.summarize(self.accelerator.gather, self.args.device)
        super().log(logs, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        # Where `Trainer` writes checkpoints; `_save_checkpoint` moves them to where they belong.
        return str(unfinished_folder(self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint apart from the others; it gets its name when all processes have written.

        Whatever kills a run, a folder of the name ``checkpoint-*`` is whole, and an older one is removed only
        after that. At the end of a run its result is written first. A checkpoint that cannot be written does
        not end the run.
        """
        if self.state.global_step >= self.state.max_steps:
            self.save_result()
        name = f"checkpoint-{self.state.global_step}"
        if not self._has_space(name):
            return
        folder, saves = self.args.output_dir, self.args.should_save
        if saves:
            remove_unfinished(folder)
        self.accelerator.wait_for_everyone()
        failure = self._try_to_save(model, trial)
        self.accelerator.wait_for_everyone()
        if saves and failure is None:
            finish_checkpoint(folder, self._fingerprint)
            remove_older(folder, self.args.save_total_limit)
        elif saves:
            remove_unfinished(folder)
            logger.warning("%s is not written, and the run goes on: %s", name, failure)
        self.accelerator.wait_for_everyone()

    def _has_space(self, name: str) -> bool:
        """Tell in all processes whether there is space for a checkpoint, and say so if there is none."""
        sizes, is_written = sizes_of(self), self._result_is_written
        why = on_first_process(lambda: lacks_space(self.args.output_dir, sizes, result_is_written=is_written))
        if why and self.args.should_save:
            logger.warning("%s is not written: %s", name, why)
        return why is None

    def _try_to_save(self, model: nn.Module, trial: Any) -> str | None:
        """Write the files of a checkpoint; return why that failed, if it did.

        Raises:
            UserError: If it fails under DeepSpeed, whose processes wait for each other.
        """
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, RuntimeError) as error:  # the latter is what torch raises for a disk that is full
            # Without what follows it, such as a trace of C++.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if self.is_deepspeed_enabled:
                raise UserError(f"a checkpoint cannot be written: {reason}") from error
            return reason
        return None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after making sure that there is space for what comes of it.

        Raises:
            UserError: If there is none for the result.
        """
        folder, sizes = self.args.output_dir, sizes_of(self)
        saves = self.args.save_strategy != SaveStrategy.NO
        on_first_process(lambda: check_space(folder, sizes, with_checkpoints=saves))
        return super().train(*args, **kwargs)

    def save_result(self) -> None:
        """Write the result of the run into its output folder, once."""
        if not self._result_is_written:
            save_final(self)
            self._result_is_written = True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what the run trains: the full model, or the projector or adapter alone.

        Args:
            output_dir: Where to; by default the run's output folder.
            _internal_call: Of transformers.
        """
        if self.args.saves is CheckpointKind.FULL:
            super().save_model(output_dir, _internal_call)
            return
        # A projector that a file brought is saved though it be frozen: the base has none, or another one.
        own = (
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad or any(part in name for part in (PROJECTOR, NEWLINE))
        )
        weights = copy_gathered(own)  # on every process, where DeepSpeed has split them
        if self.args.should_save:
            save = save_projector if self.args.saves is CheckpointKind.PROJECTOR else save_lora
            save(self.model, Path(output_dir or self.args.output_dir), weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        # transformers would leave frozen weights out for peft's models alone; ours can be read from the base.
        self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any
    ) -> Any:
        if resume_from_checkpoint is None or not self.is_deepspeed_enabled:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        # Not strict: frozen weights were left out.
        deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint, load_module_strict=False)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            if not self.is_deepspeed_enabled:
                check_optimizer(Path(checkpoint), self.optimizer)
            check_scheduler(Path(checkpoint), self.lr_scheduler)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.args.saves is CheckpointKind.FULL:
            check_learned(self.model, open_weights(folder), folder)
        if self.args.saves is CheckpointKind.LORA:
            check_adapter(adapter_file(folder), self.model)
        if self.args.saves is not CheckpointKind.PROJECTOR:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.saves is not CheckpointKind.FULL:
            name = PROJECTOR_FILE if self.args.saves is CheckpointKind.PROJECTOR else NON_LORA_FILE
            load_parts(self.model if model is None else model, folder / name)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A CLIP that the base trained is in checkpoints, but is no part of the model while it trains.
        load_result.unexpected_keys[:] = [name for name in load_result.unexpected_keys if TOWER not in name]
        super()._issue_warnings_after_load(load_result)


def _name_records(records: Sequence[str]) -> str:
    """Return what error messages call the records of a micro-batch."""
    shown = ", ".join(records[:RECORDS_SHOWN])
    more = f" and {len(records) - RECORDS_SHOWN} more" if len(records) > RECORDS_SHOWN else ""
    return f"the records {shown}{more}" if records else "a micro-batch"
