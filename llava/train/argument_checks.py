"""What may be wrong with a training command line: found before anything is loaded, said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from transformers import Trainer, get_scheduler
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    is_azureml_available,
    is_flytekit_available,
)
from transformers.training_args import OptimizerNames

from llava.errors import UserError
from llava.train.wandb_login import check_wandb_login
from llava.utils import process_rank

if TYPE_CHECKING:
    from llava.train.arguments import ModelArguments, TrainingArguments


BITS = (4, 8, 16)
QUANT_TYPES = ("fp4", "nf4")
LORA_BIASES = ("none", "all", "lora_only")
REPORTERS_OF_EXTRA = ("tensorboard", "wandb")  # of llava[train]
GROUP_BY_LENGTH = "group_by_length"
# batch_rebalance of transformers would make every sample to measure it.
SAMPLING_STRATEGIES = ("random", "sequential", GROUP_BY_LENGTH)
SAVE_STRATEGIES = ("no", "steps", "epoch")  # without an evaluation, no checkpoint is the best
PATCH_MERGE_TYPES = ("flat", "spatial", "spatial_unpad")
# The smallest accepted values.
LEAST = {
    "model_max_length": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "seed": 0,
    "lora_r": 1,
    "skip_nonfinite": 0,
}
RATES = ("learning_rate", "mm_projector_lr", "weight_decay", "max_grad_norm", "adam_epsilon")
OPTIMIZERS_OF_A_MODEL = ("galore", "apollo", "lomo")  # parts of their names; made with the model in hand
# What transformers' arguments offer and training here does not, with what to do instead.
REFUSED = {
    "fsdp": "use --deepspeed scripts/zero3.json",
    "push_to_hub": "upload the output folder afterwards",
    "save_only_model": "no run could resume from such checkpoints",
    # transformers shifts labels for models that it knows alone: here each token would learn to repeat itself.
    "label_smoothing_factor": "the loss is LLaVA's, without smoothing",
    "use_liger_kernel": "it has no kernels for LLaVA's models",
}


def check_choice(flag: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise UserError(f"{flag} is {value!r}; accepted: {', '.join(map(str, choices))}")


def check_run(training_args: TrainingArguments) -> None:
    """Refuse values with which no run could begin, and what this training has not.

    Raises:
        UserError: If there is one; before anything is loaded.
    """
    for name, least in LEAST.items():
        if getattr(training_args, name) < least:
            raise UserError(f"--{name} is {getattr(training_args, name)}; accepted: {least} or more")
    for name, instead in REFUSED.items():
        if getattr(training_args, name):
            raise UserError(f"--{name} is not supported: {instead}")
    for is_wrong, sentence in _mistakes(training_args):
        if is_wrong:
            raise UserError(sentence)
    check_choice("--eval_strategy", training_args.eval_strategy.value, ("no",))  # there are no data for it
    check_choice("--save_strategy", training_args.save_strategy.value, SAVE_STRATEGIES)
    check_choice("--train_sampling_strategy", training_args.train_sampling_strategy, SAMPLING_STRATEGIES)
    resumes = (training_args.resume_from_checkpoint or "False").lower() != "false"
    if training_args.overwrite_output_dir and resumes:
        raise UserError("--overwrite_output_dir begins anew; leave out --resume_from_checkpoint")


def check_fills_a_batch(training_args: TrainingArguments, records: int) -> None:
    """Refuse to leave the last batch out where there is no other.

    Args:
        training_args: How it is trained.
        records: How many there are.

    Raises:
        UserError: If they are fewer than a batch of all processes.
    """
    needed = training_args.per_device_train_batch_size * training_args.world_size
    if training_args.dataloader_drop_last and records < needed:
        raise UserError(
            f"--dataloader_drop_last True leaves none of {records} records: a batch of all processes has "
            f"{needed}; leave it out, or lower --per_device_train_batch_size"
        )


def _mistakes(training_args: TrainingArguments) -> Iterator[tuple[bool, str]]:
    """Yield what may be wrong with single values, and how to say so."""
    steps, share = training_args.max_steps, training_args.warmup_ratio
    yield steps == 0, "--max_steps is 0; accepted: 1 or more, or -1 to count --num_train_epochs"
    yield not training_args.output_dir, "--output_dir is ''; accepted: a folder"
    yield not 0 <= (share or 0) <= 1, f"--warmup_ratio is {share}; accepted: 0 to 1"
    epochs = training_args.num_train_epochs
    yield (
        steps < 0 and not 0 < epochs < math.inf,
        f"--num_train_epochs is {epochs:g}; accepted: a number above 0, or --max_steps",
    )
    for name in RATES:
        rate = getattr(training_args, name)
        yield rate is not None and not 0 <= rate < math.inf, f"--{name} is {rate}; accepted: 0 or more"


@contextmanager
def naming_option(option: str) -> Iterator[None]:
    """Say what transformers refuses in a sentence that names the option.

    Args:
        option: With its value, as on a command line.

    Raises:
        UserError: If a package or another setting is missing, or a value is not accepted.
    """
    try:
        yield
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(f"{option} cannot be used: {' '.join(str(error).split())}") from error


def name_optimizer(training_args: TrainingArguments) -> str:
    """Return the option that chooses the optimizer, as on a command line."""
    return f"--optim {OptimizerNames(training_args.optim).value}"


def check_optimizer(training_args: TrainingArguments) -> None:
    """Refuse an optimizer for which a package is missing; what it asks of the model shows when it is made.

    Raises:
        UserError: If one is; before anything is loaded.
    """
    option = name_optimizer(training_args)
    with naming_option(option):
        try:
            Trainer.get_optimizer_cls_and_kwargs(training_args)
        except ValueError:
            # These have their package, and miss the model, which comes later.
            if not any(name in option for name in OPTIMIZERS_OF_A_MODEL):
                raise


def check_schedule(training_args: TrainingArguments) -> None:
    """Refuse a schedule that needs other settings than it has, by making it for a single number.

    Raises:
        UserError: If it does; before anything is loaded.
    """
    schedule, settings = training_args.lr_scheduler_type, training_args.lr_scheduler_kwargs
    number = torch.nn.Parameter(torch.zeros(1))
    with naming_option(f"--lr_scheduler_type {schedule.value} with --lr_scheduler_kwargs {settings}"):
        get_scheduler(
            schedule,
            torch.optim.SGD([number], lr=training_args.learning_rate),
            num_warmup_steps=0,
            num_training_steps=1,
            scheduler_specific_kwargs=settings,
        )


def check_adapter(model_args: ModelArguments, training_args: TrainingArguments) -> None:
    """Refuse settings of LoRA and of quantized weights that are not accepted or contradict each other.

    Raises:
        UserError: If there is one; before anything is loaded.
    """
    check_choice("--bits", training_args.bits, BITS)
    check_choice("--quant_type", training_args.quant_type, QUANT_TYPES)
    check_choice("--lora_bias", training_args.lora_bias, LORA_BIASES)
    if not 0 <= training_args.lora_dropout < 1:
        raise UserError(f"--lora_dropout is {training_args.lora_dropout}; accepted: 0 to below 1")
    if training_args.lora_enable and model_args.tune_mm_mlp_adapter:
        raise UserError("--tune_mm_mlp_adapter trains the projector alone; leave out --lora_enable")
    if training_args.freeze_mm_mlp_adapter and model_args.tune_mm_mlp_adapter:
        raise UserError(
            "--tune_mm_mlp_adapter and --freeze_mm_mlp_adapter together leave nothing that learns"
        )
    if training_args.lora_enable and find_spec("peft") is None:
        raise UserError("--lora_enable needs peft: pip install 'llava[train]'")
    if training_args.bits < BITS[-1]:
        _check_quantized(training_args)


def _check_quantized(training_args: TrainingArguments) -> None:
    """Refuse settings that do not go with quantized weights.

    Raises:
        UserError: If there is one.
    """
    if not training_args.lora_enable:
        raise UserError(f"--bits {training_args.bits} weights cannot learn: add --lora_enable True")
    if training_args.is_zero3:
        raise UserError(
            f"ZeRO-3 cannot split --bits {training_args.bits} weights: use scripts/zero2.json, or --bits 16"
        )


def check_reporters(training_args: TrainingArguments) -> None:
    """Refuse a report that does not exist, or needs a package which is not installed or a login.

    Raises:
        UserError: If there is one; before anything is loaded.
    """
    for name in training_args.report_to:
        check_choice("--report_to", name, ("none", "all", *INTEGRATION_TO_CALLBACK))
        _check_reporter(name)
    if "wandb" in training_args.report_to and process_rank() == 0:  # the one that reports
        check_wandb_login()


def _check_reporter(name: str) -> None:
    """Refuse a report for which transformers finds no package.

    Raises:
        UserError: If it finds none.
    """
    available = _available_reporters()
    if name in available:
        return
    if name in REPORTERS_OF_EXTRA:
        raise UserError(f"--report_to {name} needs {name}: pip install 'llava[train]'")
    raise UserError(
        f"--report_to {name} needs a package that is not installed or a setting that is missing; accepted "
        f"here: {', '.join(['none', *available])}"
    )


def _available_reporters() -> list[str]:
    """Return the reports whose packages are installed and set up."""
    available = get_available_reporting_integrations()  # what "all" stands for: not all that there are
    if is_azureml_available() and "azure_ml" not in available:
        available.append("azure_ml")
    if is_flytekit_available():
        available.append("flyte")
    return available
