"""All token reductions by name, and the reading of a setting."""

from __future__ import annotations

from collections.abc import Iterable

from llava.errors import UserError, shown
from llava.model.multimodal_encoder.reducers.base import Budgeted, Method, Signal
from llava.model.multimodal_encoder.reducers.cdpruner import CDPruner
from llava.model.multimodal_encoder.reducers.divprune import DivPrune
from llava.model.multimodal_encoder.reducers.eadp import EADP
from llava.model.multimodal_encoder.reducers.fastervlm import FasterVLM
from llava.model.multimodal_encoder.reducers.hiprune import HiPrune
from llava.model.multimodal_encoder.reducers.mmtok import MMTok
from llava.model.multimodal_encoder.reducers.prumerge import PruMerge, PruMergePlus
from llava.model.multimodal_encoder.reducers.scope import SCOPE
from llava.model.multimodal_encoder.reducers.tome import ToMe
from llava.model.multimodal_encoder.reducers.trim_dpp import TrimDPP
from llava.model.multimodal_encoder.reducers.visionzip import VisionZip
from llava.model.multimodal_encoder.reducers.vispruner import VisPruner
from llava.model.multimodal_encoder.token_reduction import NoReduction, Pool, Random, Reducer, Trim

METHODS: dict[str, type[Budgeted]] = {
    method.name: method
    for method in (
        VisionZip,
        PruMerge,
        PruMergePlus,
        DivPrune,
        CDPruner,
        FasterVLM,
        VisPruner,
        HiPrune,
        ToMe,
        SCOPE,
        MMTok,
        EADP,
        TrimDPP,
    )
}
"""Methods other than TRIM and its baselines."""
REDUCERS: dict[str, type[Reducer]] = {"TRIM": Trim, "Random": Random, "Pool": Pool, **METHODS}
"""What may stand in front of the colon."""
_ADAPTIVE = ", ".join(name for name, method in METHODS.items() if method.adaptive)
_FIXED = ", ".join(name for name, method in METHODS.items() if not method.adaptive)
ACCEPTED_FORMS = (
    "'none', 'TRIM:-1' (adaptive), 'TRIM:r' with a ratio 0 < r <= 1, 'TRIM:k' with a whole number k of "
    f"patches, 'Random:' followed by the same, 'Pool:k', -1, r or k behind {_ADAPTIVE}, or r or k behind "
    f"{_FIXED} (llava reducers describes them)"
)

JOINT = "patches and question in CLIP's joint space"


def parse_reduction(text: str | None) -> Reducer:
    """Read a value of ``mm_vision_token_reduce_func``, from config.json, a command line or a request.

    Args:
        text: ``None`` or ``none`` for no reduction, otherwise ``<name>:<value>``.

    Returns:
        The reducer.

    Raises:
        UserError: If the setting is none of the accepted forms, which the message lists.
    """
    if text is None or text == "none":
        return NoReduction()
    name, _, value = str(text).partition(":")
    try:
        return REDUCERS[name].parse(value)
    except (KeyError, ValueError) as error:
        reason = f": {error}" if name in METHODS else f"; accepted: {ACCEPTED_FORMS}"
        raise UserError(f"{shown(text)} is not a token reduction{reason}") from None


def signals_of(reducers: Iterable[Reducer]) -> frozenset[Signal]:
    """Return what the vision encoder has to give up beside its patches for any of these."""
    return frozenset().union(*(one.reads for one in reducers if isinstance(one, Method)))


def reads_question(reducer: Reducer) -> bool:
    """Tell whether a reducer looks at the question, through CLIP or through the language model's words."""
    return reducer.needs_question or (isinstance(reducer, Method) and reducer.needs_words)


def describe() -> list[dict[str, str]]:
    """Return a line per reduction, for people: its name, where it was published, what it looks at."""
    own = [
        {"name": "TRIM", "paper": "arXiv:2409.10994", "question": "CLIP", "reads": JOINT},
        {"name": "Random", "paper": "-", "question": "for -1 only", "reads": "nothing: a baseline for TRIM"},
        {"name": "Pool", "paper": "-", "question": "no", "reads": "patches: averages over a grid"},
    ]
    return own + [_describe(name, method) for name, method in METHODS.items()]


def _describe(name: str, method: type[Method]) -> dict[str, str]:
    """Return the line of a published method."""
    question = "CLIP" if method.needs_question else "words" if method.needs_words else "no"
    reads = ["patches"] * method.needs_patches
    reads += [signal.value for signal in Signal if signal in method.reads]
    reads += ["the layer behind the selected one"] * method.needs_next_layer
    reads += ["projected patches"] * method.needs_projected
    reads += [JOINT] * method.needs_question
    reads += ["the language model's embeddings of the question's words"] * method.needs_words
    reads += ["padding"] * method.needs_padding
    return {"name": name, "paper": method.paper, "question": question, "reads": ", ".join(reads)}
