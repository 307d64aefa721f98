"""Pictures of results, where matplotlib is installed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.eval.files import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def draw_png(path: Path, fill: Callable[[Figure], None], **settings: Any) -> bool:
    """Draw a figure into a file, if matplotlib is installed; return whether it is.

    Args:
        path: PNG file.
        fill: Draws what is to be seen.
        **settings: Of matplotlib's figure.

    Raises:
        UserError: If it cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("nothing is drawn without matplotlib: pip install 'llava[eval]'")
        return False
    figure = Figure(layout="constrained", **settings)
    fill(figure)
    with writing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=120)
    return True
