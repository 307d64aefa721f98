"""Options that several command lines share: which model to load, and how it is to answer."""

import argparse
import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from llava.errors import UserError
from llava.terminal import flush_output

if TYPE_CHECKING:
    from llava.assistant import Assistant
    from llava.engine.base import Generation
    from llava.engine.vllm_engine import VllmOptions


MOST_PORT = 65535


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like all other errors of the commands."""

    def error(self, message: str) -> NoReturn:
        """Report a wrong command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message} (see {self.prog} --help)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End the process after ``--help`` or ``--version``, once that has been written.

        Raises:
            SystemExit: Always.
        """
        flush_output()
        super().exit(status, message)


def positive(text: str) -> int:
    """Read an option that counts things, of which there must be at least one.

    Raises:
        argparse.ArgumentTypeError: If it is not a whole number above 0.
    """
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number; accepted: 1 or more")
    return int(text)


def port(text: str, least: int = 1) -> int:
    """Read an option that says at which port to listen.

    Args:
        text: What was written.
        least: The smallest accepted value.

    Raises:
        argparse.ArgumentTypeError: If there is no such port.
    """
    if not (text.isdecimal() and least <= int(text) <= MOST_PORT):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port; accepted: {least} to {MOST_PORT}")
    return int(text)


def port_or_any(text: str) -> int:
    """Read an option that says at which port to listen, where 0 stands for any that is free.

    Raises:
        argparse.ArgumentTypeError: If there is no such port.
    """
    return port(text, least=0)


def mebibytes(text: str) -> float:
    """Read an option that bounds memory, in MiB.

    Raises:
        argparse.ArgumentTypeError: If it is no number, or below 0.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid number of MiB; accepted: 0 or more")
    return value


def utf8(argument: str) -> str:
    """Read an argument that is a text, as UTF-8 also where the locale knows ASCII alone.

    Raises:
        argparse.ArgumentTypeError: If it is not UTF-8.
    """
    try:
        return argument.encode(errors="surrogateescape").decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{argument!r:.80} is not UTF-8") from None


def add_model_options(parser: argparse.ArgumentParser, *, with_reduction: bool = True) -> None:
    """Add the options that say which model to load and how.

    Args:
        parser: Gets them.
        with_reduction: Whether one of them is the reduction, which some commands choose themselves.
    """
    model = parser.add_argument_group("model")
    model.add_argument("--model-path", help="checkpoint folder or hub id (default: the bundled shapes model)")
    model.add_argument(
        "--model-base",
        nargs="?",  # LLaVA's scripts pass it without a value where there is no base
        help="base model of a checkpoint that is a projector or a LoRA adapter",
    )
    model.add_argument("--vision-tower", help="CLIP folder or hub id to use instead of the checkpoint's")
    if with_reduction:
        model.add_argument(
            "--token-reduction",
            metavar="SPEC",
            help="instead of the checkpoint's: none, TRIM:-1 (adaptive), TRIM:0.25, TRIM:64, Random:64, "
            "Pool:64",
        )
    model.add_argument(
        "--dtype",
        metavar="TYPE",
        help="float32, float16 or bfloat16 (default: float32 on a CPU, float16 on other devices)",
    )
    model.add_argument("--device", help="cuda, mps or cpu (default: the best one of this machine)")
    model.add_argument(
        "--conv-mode", metavar="TEMPLATE", help="conversation template instead of the checkpoint's"
    )
    model.add_argument("--load-8bit", action="store_true", help="quantize the language model to 8 bits")
    model.add_argument("--load-4bit", action="store_true", help="quantize the language model to 4 bits")
    model.add_argument(
        "--compile-vision",
        action="store_true",
        help="compile the vision encoder when the first image is seen, which takes up to a minute",
    )
    model.add_argument(
        "--no-cuda-graphs",
        action="store_true",
        help="start every kernel by itself: slower on a GPU, with less memory",
    )
    model.add_argument(
        "--image-cache",
        type=mebibytes,
        metavar="MIB",
        help="how much encoded images take that are kept for further questions (default: 256; 0 keeps none)",
    )


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what runs the language model, for commands that answer many requests."""
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        default="transformers",
        help="what runs the language model (default: transformers); vllm is installed by itself",
    )
    engine.add_argument(
        "--tensor-parallel-size",
        type=positive,
        metavar="N",
        help="devices over which vLLM spreads each layer (default: 1)",
    )
    engine.add_argument(
        "--vllm-option",
        type=vllm_option,
        action="append",
        metavar="NAME=VALUE",
        help="another of vLLM's engine arguments, such as max_model_len=4096; may be repeated",
    )


def vllm_option(text: str) -> tuple[str, Any]:
    """Read one of vLLM's engine arguments: a value of JSON, or else a text.

    Raises:
        argparse.ArgumentTypeError: If it is no name with a value.
    """
    name, separator, value = text.partition("=")
    name = name.strip().lstrip("-").replace("-", "_")
    if not (separator and name.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid option; accepted: NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def add_generation_options(
    parser: argparse.ArgumentParser, temperature: float = 0.0, separator: str = "-"
) -> None:
    """Add the options that say how answers are written.

    Args:
        parser: Gets them.
        temperature: Default.
        separator: What joins the words of a name; some of LLaVA's commands have ``_``. One command has one
            spelling only, because argparse finds an abbreviation of two ambiguous.
    """

    def add(name: str, **settings: Any) -> None:
        group.add_argument(f"--{name.replace('-', separator)}", **settings)

    group = parser.add_argument_group("answer")
    add("max-new-tokens", type=int, default=512, metavar="N", help="longest answer (default: 512)")
    add(
        "temperature",
        type=float,
        default=temperature,
        metavar="T",
        help=f"0 always takes the likeliest token (default: {temperature:g})",
    )
    add("top-p", type=float, metavar="P", help="sample from the likeliest tokens of this probability")
    add("num-beams", type=int, default=1, metavar="N", help="beams of the search (default: 1)")
    add("seed", type=int, help="of the sampling")


def read_generation(options: Any) -> "Generation":
    """Return how answers are written, from the options of ``add_generation_options``.

    Args:
        options: Parsed arguments, or any object with some of the same attributes.

    Raises:
        UserError: If a value is out of its range.
    """
    from llava.engine.base import Generation

    names = ("max_new_tokens", "temperature", "top_p", "num_beams", "seed")
    return Generation(
        **without_idle_top_p({name: getattr(options, name) for name in names if hasattr(options, name)})
    )


def without_idle_top_p(given: dict[str, Any]) -> dict[str, Any]:
    """Leave ``top_p`` out where the likeliest token is always taken: LLaVA's scripts may pass any, even 0."""
    return given if given.get("temperature") else {k: v for k, v in given.items() if k != "top_p"}


def name_of_model(model_path: str | None) -> str:
    """Return what a model is called: by its path, or as the bundled one."""
    from llava.assistant import SHAPES_CHECKPOINT
    from llava.mm_utils import get_model_name_from_path

    return get_model_name_from_path(model_path or str(SHAPES_CHECKPOINT))


def load_assistant(options: Any) -> "Assistant":
    """Load the model that the options of ``add_model_options`` describe.

    Args:
        options: Parsed arguments, or any object with some of the same attributes.

    Raises:
        UserError: If it cannot be loaded.
    """
    from llava.assistant import Assistant

    cache = getattr(options, "image_cache", None)
    return Assistant.load(
        getattr(options, "model_path", None),
        model_base=getattr(options, "model_base", None),
        vision_tower=getattr(options, "vision_tower", None),
        token_reduction=getattr(options, "token_reduction", None),
        dtype=getattr(options, "dtype", None),
        device=getattr(options, "device", None),
        conv_mode=getattr(options, "conv_mode", None),
        load_8bit=getattr(options, "load_8bit", False),
        load_4bit=getattr(options, "load_4bit", False),
        vllm=read_vllm_options(options),
        compile_vision=getattr(options, "compile_vision", False),
        cuda_graphs=not getattr(options, "no_cuda_graphs", False),
        **({} if cache is None else {"image_cache_mib": cache}),
    )


def read_vllm_options(options: Any) -> "VllmOptions | None":
    """Return how vLLM is to run, from the options of ``add_engine_options``; None if it is not to.

    Raises:
        UserError: If there are options for it and it is not to run.
    """
    devices, more = getattr(options, "tensor_parallel_size", None), getattr(options, "vllm_option", None)
    if getattr(options, "engine", "transformers") != "vllm":
        if devices or more:
            raise UserError("--tensor-parallel-size and --vllm-option go with --engine vllm")
        return None
    from llava.engine.vllm_engine import VllmOptions

    return VllmOptions(devices or 1, dict(more or ()))
