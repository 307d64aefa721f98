"""The command line of training: LLaVA's argument names and defaults, TRIM's, and old flags kept alive."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from transformers import HfArgumentParser
from transformers.training_args import ParallelMode
from transformers.utils import is_torch_tf32_available

from llava.errors import MissingFileError, UserError
from llava.internals import use_one_gpu
from llava.model.checkpoint_files import CheckpointKind
from llava.train.argument_checks import (
    GROUP_BY_LENGTH,
    PATCH_MERGE_TYPES,
    check_adapter,
    check_choice,
    check_optimizer,
    check_reporters,
    check_run,
    check_schedule,
)

logger = logging.getLogger(__name__)

TEXT_SOURCES = ("questions", "conversation")
ASPECT_RATIOS = ("square", "pad")
LOSS_AVERAGES = ("micro_batch", "token")
ON_BAD_IMAGE = ("error", "skip")


def _arg(default: Any, help_text: str) -> Any:
    """Declare an argument with its help text."""
    return field(default=default, metadata={"help": help_text})


@dataclass
class ModelArguments:
    """What is trained; see the help text of every field."""

    model_name_or_path: str = _arg("facebook/opt-125m", "Base: a language model or a LLaVA checkpoint.")
    version: str = _arg("v0", "Conversation template: v1 (fine-tuning LLaVA-1.5), plain (pretraining), ...")
    freeze_backbone: bool = _arg(False, "Keep the language model's layers as they are.")
    tune_mm_mlp_adapter: bool = _arg(False, "Train the projector alone (pretraining).")
    vision_tower: str | None = _arg(None, "CLIP: hub id or folder. By default the base's, if it has one.")
    mm_vision_select_layer: int = _arg(-1, "Hidden state of CLIP to read; LLaVA-1.5: -2.")
    pretrain_mm_mlp_adapter: str | None = _arg(None, "mm_projector.bin of a pretraining run to start from.")
    mm_projector_type: str = _arg("linear", "linear, mlp<N>x_gelu or identity; LLaVA-1.5: mlp2x_gelu.")
    mm_use_im_start_end: bool = _arg(False, "Put <im_start> and <im_end> around every image.")
    mm_use_im_patch_token: bool = _arg(True, "Add the token <im_patch>, which nothing reads.")
    mm_patch_merge_type: str = _arg("flat", "How tiles of an image are joined: flat, spatial, spatial_unpad.")
    mm_vision_select_feature: str = _arg("patch", "patch, or cls_patch to keep CLIP's class token.")
    mm_vision_token_reduce_func: str | None = _arg(
        None, "Token reduction such as TRIM:-1; none turns off what the base's config says."
    )
    mm_text_source: str = _arg(
        "questions",
        "Text by which patches are kept: each question of the sample, or the published code's conversation "
        "(with its answers).",
    )


@dataclass
class DataArguments:
    """What it is trained on; see the help text of every field."""

    data_path: str | None = _arg(None, "JSON list of records in LLaVA's format.")
    lazy_preprocess: bool = _arg(False, "Accepted and not read: samples are always made when needed.")
    is_multimodal: bool = _arg(False, "Set by the program where there is a vision tower.")
    image_folder: str | None = _arg(None, "Folder below which the records' images lie.")
    image_aspect_ratio: str = _arg("square", "square (CLIP's crop) or pad; LLaVA-1.5 fine-tuning: pad.")
    on_bad_image: str = _arg(
        "error",
        "At a missing or broken image: error stops, skip leaves the record out, says so and counts it.",
    )
    # Filled in by the program, as in LLaVA; no flags.
    image_processor: Any = field(default=None, init=False)
    mm_use_im_start_end: bool = field(default=False, init=False)


@dataclass
class TrainingArguments(transformers.TrainingArguments):
    """How it is trained: transformers' arguments, LLaVA's own, and old names of both."""

    cache_dir: str | None = _arg(None, "Accepted and not read: HF_HOME says where downloads go.")
    optim: str = _arg("adamw_torch", "Optimizer.")
    remove_unused_columns: bool = _arg(False, "Always false: the collator reads every column.")
    freeze_mm_mlp_adapter: bool = _arg(False, "Keep the projector as it is.")
    mpt_attn_impl: str | None = _arg("triton", "Accepted and not read: of MPT models.")
    model_max_length: int = _arg(512, "Tokens of a sample; the rest is cut off on the right.")
    double_quant: bool = _arg(True, "For bits below 16: quantize the quantization constants too.")
    quant_type: str = _arg("nf4", "For 4 bits: fp4 or nf4.")
    bits: int = _arg(16, "Bits of the frozen weights.")
    lora_enable: bool = _arg(False, "Train a LoRA adapter.")
    lora_r: int = _arg(64, "Rank of the adapter.")
    lora_alpha: int = _arg(16, "Scale of the adapter.")
    lora_dropout: float = _arg(0.05, "Dropout in front of the adapter.")
    lora_weight_path: str = _arg("", "Accepted and not read.")
    lora_bias: str = _arg("none", "Biases trained beside the adapter.")
    mm_projector_lr: float | None = _arg(None, "Learning rate of the projector where it differs.")
    loss_average: str = _arg(
        "micro_batch",
        "Loss of an update: micro_batch, the mean over micro-batches of each one's mean, as published; or "
        "token, the mean over all supervised tokens of the update.",
    )
    group_by_modality_length: bool = _arg(False, "Batches of one modality and of similar length.")
    disable_tqdm: bool | None = _arg(True, "Progress as log lines instead of a bar.")
    evaluation_strategy: str | None = _arg(None, "Old name of eval_strategy.")
    warmup_ratio: float | None = _arg(None, "Share of all steps in which the rate grows; 1.0 is all of them.")

    overwrite_output_dir: bool = _arg(
        False, "Remove checkpoints and results in the output folder and begin anew, instead of resuming."
    )
    resume_anyway: bool = _arg(False, "Resume from a checkpoint of a run with other settings or data.")
    skip_nonfinite: int = _arg(
        0, "So many micro-batches may be left out because their loss is not finite; one more ends the run."
    )
    save_safetensors: bool = _arg(True, "Accepted and not read: full models are saved as safetensors.")
    group_by_length: bool = _arg(False, "Old name of --train_sampling_strategy group_by_length.")
    # Filled in by the program; no flag: that of `ModelArguments`.
    tune_mm_mlp_adapter: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        """Translate old names, and leave out what this machine cannot do."""
        self._translate_old_names()
        inherited: Any = self  # mypy cannot see through transformers' dataclass
        if inherited.tf32 and not is_torch_tf32_available():
            logger.info("--tf32 True is ignored: this machine has no such arithmetic")
            inherited.tf32 = None
        if inherited.ddp_find_unused_parameters is None:
            inherited.ddp_find_unused_parameters = False  # whatever learns is used in every step
        if not torch.accelerator.is_available():
            # Said openly, because transformers refuses bf16 on a CPU that is merely all there is.
            inherited.use_cpu = True
            inherited.dataloader_pin_memory = False
        if inherited.deepspeed:
            self._check_deepspeed()
        super().__post_init__()
        if inherited.deepspeed:
            import deepspeed

            # On a CPU transformers starts torch's process group only, and ZeRO-3 would split for one process.
            deepspeed.init_distributed(verbose=False)
            if self.mm_projector_lr is not None and inherited.hf_deepspeed_config.get_value("optimizer"):
                logger.warning("--mm_projector_lr is ignored: the DeepSpeed configuration has an optimizer")
        self._take_one_device()

    def _translate_old_names(self) -> None:
        """Say by today's names what LLaVA's scripts and older command lines say by others."""
        inherited: Any = self
        if self.evaluation_strategy is not None:
            inherited.eval_strategy = self.evaluation_strategy
        if self.group_by_length:
            inherited.train_sampling_strategy = GROUP_BY_LENGTH
        if getattr(self, "activation_checkpointing", True) is None:
            # The old name would print a warning.
            inherited.activation_checkpointing = inherited.gradient_checkpointing
            inherited.gradient_checkpointing = None

    def _check_deepspeed(self) -> None:
        """Refuse a DeepSpeed that is not there.

        Raises:
            UserError: If it is not installed, or cannot know how many processes there are.
            MissingFileError: If its configuration is a file that does not exist.
        """
        if find_spec("deepspeed") is None:
            raise UserError("--deepspeed needs DeepSpeed: pip install 'llava[train]'")
        config = self.deepspeed
        if isinstance(config, str) and not config.lstrip().startswith("{") and not Path(config).is_file():
            raise MissingFileError(f"no DeepSpeed configuration {config!r} (--deepspeed)")
        if self.fp16 and not torch.accelerator.is_available():
            raise UserError("--fp16 True under DeepSpeed needs a GPU; on a CPU use --bf16 True")
        if "RANK" not in os.environ and find_spec("mpi4py") is None:
            raise UserError("--deepspeed needs a launcher: start with deepspeed or torchrun, not python")

    def _take_one_device(self) -> None:
        """Without a launcher, train on one of several GPUs: a single process cannot deal out texts to all."""
        inherited: Any = self
        if inherited.device is not None and inherited.parallel_mode is ParallelMode.NOT_DISTRIBUTED:
            logger.info(
                "training on %s, 1 of %d GPUs: start with torchrun or deepspeed to use all of them",
                inherited.device,
                inherited.n_gpu,
            )
            use_one_gpu(inherited)

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Count the steps in which the rate grows: --warmup_steps, or else the share --warmup_ratio.

        transformers 5 has one number for both, of which 1.0 is one step.
        """
        inherited: Any = self
        if self.warmup_ratio and not inherited.warmup_steps:
            return math.ceil(num_training_steps * self.warmup_ratio)
        return super().get_warmup_steps(num_training_steps)

    @property
    def saves(self) -> CheckpointKind:
        """What a run saves."""
        if self.tune_mm_mlp_adapter:
            return CheckpointKind.PROJECTOR
        return CheckpointKind.LORA if self.lora_enable else CheckpointKind.FULL

    @property
    def is_zero3(self) -> bool:
        """Whether DeepSpeed splits the weights themselves over the processes."""
        config = getattr(self, "hf_deepspeed_config", None)  # there only with --deepspeed
        return config is not None and config.is_zero3()

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the forward pass."""
        return torch.bfloat16 if self.bf16 else torch.float16 if self.fp16 else torch.float32


class _Parser(HfArgumentParser):
    """Reports a mistake in one line, not after pages of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the arguments")


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[ModelArguments, DataArguments, TrainingArguments]:
    """Read the command line; options may be abbreviated.

    Args:
        argv: Arguments without the program's name; by default those of this process.

    Raises:
        UserError: If a value is not accepted, or the values do not go together.
    """
    parser = _Parser((ModelArguments, DataArguments, TrainingArguments))
    try:
        model_args, data_args, training_args = parser.parse_args_into_dataclasses(
            None if argv is None else list(argv), look_for_args_file=False
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    training_args.tune_mm_mlp_adapter = model_args.tune_mm_mlp_adapter  # where LLaVA's trainer looks for it
    check_choice("--mm_text_source", model_args.mm_text_source, TEXT_SOURCES)
    check_choice("--on_bad_image", data_args.on_bad_image, ON_BAD_IMAGE)
    check_choice("--mm_patch_merge_type", model_args.mm_patch_merge_type, PATCH_MERGE_TYPES)
    check_choice("--loss_average", training_args.loss_average, LOSS_AVERAGES)
    check_run(training_args)
    check_optimizer(training_args)
    check_schedule(training_args)
    check_adapter(model_args, training_args)
    check_reporters(training_args)
    return model_args, data_args, training_args


def given_options(argv: Sequence[str] | None = None) -> frozenset[str]:
    """Return the full names of a command line's options, whatever their values.

    Args:
        argv: As in `parse_arguments`.
    """
    parser, missing = _Parser((ModelArguments, DataArguments, TrainingArguments)), object()
    parser.set_defaults(**dict.fromkeys(vars(parser.parse_args([])), missing))
    return frozenset(name for name, value in vars(parser.parse_args(argv)).items() if value is not missing)
