"""What may be wrong with a training command line: found before anything is loaded, said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
    is_azureml_available,
    is_flytekit_available,
)

from llava.errors import UserError
from llava.train.wandb_login import check_wandb_login
from llava.utils import process_rank

if TYPE_CHECKING:
    from llava.train.arguments import ModelArguments, TrainingArguments


BITS = (4, 8, 16)
QUANT_TYPES = ("fp4", "nf4")
LORA_BIASES = ("none", "all", "lora_only")
REPORTERS_OF_EXTRA = ("tensorboard", "wandb")  # of llava[train]
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
# What transformers' arguments offer and training here does not, with what to do instead.
REFUSED = {
    "fsdp": "use --deepspeed scripts/zero3.json",
    "push_to_hub": "upload the output folder afterwards",
    "save_only_model": "no run could resume from such checkpoints",
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
    resumes = (training_args.resume_from_checkpoint or "False").lower() != "false"
    if training_args.overwrite_output_dir and resumes:
        raise UserError("--overwrite_output_dir begins anew; leave out --resume_from_checkpoint")


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
