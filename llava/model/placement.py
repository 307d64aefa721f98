"""Where and in which form a model is loaded: device, type, attention, quantization, decided here once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.utils import is_flash_attn_2_available

from llava.errors import UserError
from llava.terminal import hush_bitsandbytes

logger = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}
FLASH_ATTENTION_CAPABILITY = (8, 0)  # Ampere and newer


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and in which form a model is loaded.

    Attributes:
        device: Device of the vision tower and, without ``device_map``, of everything.
        dtype: Type of all weights that are not quantized.
        device_map: How accelerate spreads the language model over several devices, if it is to.
        max_memory: The most that it puts on each of them, such as ``{0: "20GiB", "cpu": "60GiB"}``.
        offload_folder: Where it keeps what fits on none of them.
        attn_implementation: Name of transformers' attention.
        quantization: 8-bit or 4-bit settings of the language model.
    """

    device: torch.device
    dtype: torch.dtype
    device_map: Any = None
    max_memory: dict[int | str, int | str] | None = None
    offload_folder: str | Path | None = None
    attn_implementation: str = "sdpa"
    quantization: BitsAndBytesConfig | None = None


def best_device() -> torch.device:
    """Return the device this machine computes best on."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def hand_over(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Bring a tensor of any shape (...) to a device and a dtype, and do not wait for the device.

    CUDA reads what lies on the host when it is handed over, whether or not that memory is pinned; other
    directions and devices make no such promise.
    """
    at_once = tensor.device.type == "cpu" and device.type == "cuda"
    return tensor.to(device=device, dtype=dtype, non_blocking=at_once)


def devices_here() -> list[str]:
    """Return the names of the devices that this machine computes on."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is None:
        return ["cpu"]
    count = max(torch.accelerator.device_count(), 1)  # not counted for every kind
    return ["cpu", *(f"{accelerator.type}:{index}" for index in range(count))]


def parse_device(name: str | torch.device | None) -> torch.device:
    """Read a device name; None is the best there is.

    Raises:
        UserError: If the name is not a device, or the machine has no such device, or cannot use it.
    """
    if name is None:
        return best_device()
    here = devices_here()
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # which holds nothing, and is on no machine
    # A type alone is the first device of that type.
    if f"{device.type}:{device.index or 0}" not in (*here, "cpu:0"):
        raise UserError(f"device {str(name)!r:.80} is not on this machine; accepted here: {', '.join(here)}")
    try:
        torch.empty(1, device=device)
    except RuntimeError as error:  # such as a GPU that another process has for itself
        reason = str(error).splitlines()[0]
        raise UserError(f"device {str(name)!r} cannot be used: {reason:.200}") from error
    return device


def parse_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Read a dtype; None is float32 on a CPU, where 16 bits change which patches stay, float16 elsewhere.

    Raises:
        UserError: If the name is not one of the accepted ones.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.float16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"{dtype!r} is not a valid dtype; accepted: {', '.join(DTYPES)}")
    return DTYPES[dtype]


def choose_attention(device: torch.device, dtype: torch.dtype, wanted: bool = False) -> str:
    """Return flash attention where it is installed and usable, otherwise PyTorch's own fused attention."""
    usable = (
        device.type == "cuda"
        and dtype != torch.float32
        and is_flash_attn_2_available()
        and torch.cuda.get_device_capability(device) >= FLASH_ATTENTION_CAPABILITY
    )
    if wanted and not usable and device.type == "cuda":  # elsewhere nobody expects it
        logger.warning(
            "flash attention needs CUDA, a 16-bit type and llava[flash]; using PyTorch's attention instead"
        )
    return "flash_attention_2" if usable else "sdpa"


@contextmanager
def attention_of_any_length() -> Iterator[None]:
    """Keep cuDNN out of what PyTorch's attention chooses from.

    On Hopper and newer it comes first, and plans every new shape for up to half a second
    (https://github.com/modelscope/FunASR/issues/3704). With ``TRIM:-1`` hardly a batch has a shape of before.
    """
    with _SWITCH.lock:
        if _SWITCH.users == 0:
            _SWITCH.was_enabled = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
        _SWITCH.users += 1
    try:
        yield
    finally:
        with _SWITCH.lock:
            _SWITCH.users -= 1
            if _SWITCH.users == 0:
                torch.backends.cuda.enable_cudnn_sdp(_SWITCH.was_enabled)


@dataclass(slots=True)
class _Switch:
    """PyTorch's switch for cuDNN's attention, which all threads share."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    was_enabled: bool = True


_SWITCH = _Switch()


def choose_quantization(
    load_8bit: bool,
    load_4bit: bool,
    compute_dtype: torch.dtype,
    *,
    quant_type: str = "nf4",
    double_quant: bool = True,
) -> BitsAndBytesConfig | None:
    """Return LLaVA's settings for 8-bit or 4-bit weights, or None.

    Args:
        load_8bit: Whether weights get 8 bits.
        load_4bit: Whether they get 4.
        compute_dtype: Type in which 4-bit weights are multiplied.
        quant_type: Of 4-bit weights, ``nf4`` or ``fp4``.
        double_quant: Whether the constants of 4-bit weights are quantized too.

    Raises:
        UserError: If both are asked for, or bitsandbytes is not installed.
    """
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise UserError("both 8-bit and 4-bit weights were asked for; choose one")
    if find_spec("bitsandbytes") is None:
        raise UserError("8-bit and 4-bit weights need bitsandbytes: pip install 'llava[quant]'")
    hush_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_8bit=load_8bit,
        load_in_4bit=load_4bit,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_quant_type=quant_type,
        llm_int8_skip_modules=["model.mm_projector", "model.vision_tower", "lm_head"],
    )


def choose_placement(  # noqa: PLR0913 - one argument per choice of a command line
    device: str | None,
    dtype: str | torch.dtype | None,
    *,
    device_map: Any = None,
    max_memory: dict[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    load_8bit: bool = False,
    load_4bit: bool = False,
    use_flash_attn: bool = False,
    attn_implementation: str | None = None,
) -> Placement:
    """Decide where and in which form to load a model.

    Args:
        device: A device's name; None for the best there is.
        dtype: A dtype; None for the device's default.
        device_map: ``auto`` or accelerate's map; read only where there is an accelerator.
        max_memory: See `Placement`.
        offload_folder: See there.
        load_8bit: As in `load_pretrained_model`, like the rest.
        load_4bit: As there.
        use_flash_attn: As there.
        attn_implementation: As there.

    Raises:
        UserError: If the device or type cannot be used, or bitsandbytes is needed and missing.
    """
    chosen = parse_device(device)
    chosen_dtype = parse_dtype(dtype, chosen)
    # One device needs no map; a map made for accelerators means nothing on a CPU.
    if chosen.type == "cpu" or (chosen.type == "mps" and device_map == "auto"):
        device_map = None
    return Placement(
        device=chosen,
        dtype=chosen_dtype,
        device_map=device_map,
        max_memory=max_memory,
        offload_folder=offload_folder,
        attn_implementation=attn_implementation or choose_attention(chosen, chosen_dtype, use_flash_attn),
        quantization=choose_quantization(load_8bit, load_4bit, chosen_dtype),
    )
