"""Draw images/overview.png: what TRIM does to one picture and one question, as the bundled model did it.

Needs matplotlib, which the extra ``dev`` brings.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from llava.assistant import Answer, Assistant
from llava.image_io import load_image
from llava.options import CommandParser
from llava.utils import exit_on_user_error
from llava.visualize import draw_kept

IMAGES = Path(__file__).parents[1] / "images"
INK, ACCENT, FAINT = "#22313f", "#c0392b", "#8795a1"


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Ask the bundled model and draw how it came to its answer."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=IMAGES / "shapes.png")
    parser.add_argument("--question", default="What color is the star?")
    parser.add_argument("--model-path", help="checkpoint folder (default: the bundled shapes model)")
    parser.add_argument("--output", type=Path, default=IMAGES / "overview.png")
    arguments = parser.parse_args(argv)
    image = load_image(arguments.image)
    answer = Assistant.load(arguments.model_path).answer(arguments.question, image)
    draw(image, arguments.question, answer).savefig(arguments.output, dpi=100)


def draw(image: Image.Image, question: str, answer: Answer) -> Figure:
    """Lay the four steps out from left to right.

    Args:
        image: A square picture, so that the model's grid is the picture's own.
        question: What was asked.
        answer: What the model said, and which patches it kept.

    Returns:
        The figure, 14 x 4.2 inches.
    """
    kept = np.asarray(answer.kept[0])
    figure = plt.figure(figsize=(14, 4.2), facecolor="white")
    steps = [figure.add_axes((left, 0.2, 0.2, 0.62)) for left in (0.02, 0.27, 0.52, 0.77)]
    titles = (
        "1  A picture and a question",
        f"2  CLIP scores {kept.size} patches\nagainst the question",
        f"3  {answer.cost.visual_tokens} visual tokens:\nthe kept ones and a merged one",
        "4  The language model answers",
    )
    for axes, title in zip(steps, titles, strict=True):
        axes.set_axis_off()
        axes.set_title(title, fontsize=11.5, color=INK, pad=10)
    show_picture(steps[0], image)
    show_picture(steps[1], draw_kept(image.resize((1024, 1024)), kept))
    show_tokens(steps[2], image, kept)
    show_answer(steps[3], answer.text)
    figure.text(0.12, 0.09, f"“{question}”", ha="center", fontsize=13, color=ACCENT)
    for left in (0.2325, 0.4825, 0.7325):
        figure.text(left + 0.0125, 0.5, "➜", ha="center", va="center", fontsize=22, color=FAINT)
    return figure


def show_picture(axes: Axes, image: Image.Image) -> None:
    """Show a picture over the whole of its axes."""
    axes.imshow(np.asarray(image.resize((768, 768), Image.Resampling.LANCZOS)))


def show_tokens(axes: Axes, image: Image.Image, kept: np.ndarray) -> None:
    """Show the kept patches as tiles in raster order, and the mean of the others as the last one.

    Args:
        axes: Where to draw.
        image: The picture.
        kept: Which patches stayed, bool (rows, columns).
    """
    rows, columns = kept.shape
    side = 16
    pixels = np.asarray(image.resize((columns * side, rows * side), Image.Resampling.LANCZOS))
    patches = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)  # (rows, columns, side, side, 3)
    merged = np.broadcast_to(patches[~kept].mean(axis=(0, 1, 2)), (side, side, 3)).astype(np.uint8)
    tiles = [*patches[kept], merged]
    per_row = max(6, math.ceil(len(tiles) ** 0.5))
    for index, tile in enumerate(tiles):
        row, column = divmod(index, per_row)
        axes.imshow(tile, extent=(column, column + 0.85, -row - 0.85, -row))
    axes.set_xlim(0, per_row)
    axes.set_ylim(-per_row, 0)
    row, column = divmod(len(tiles) - 1, per_row)
    axes.add_patch(
        plt.Rectangle((column, -row - 0.85), 0.85, 0.85, fill=False, edgecolor=ACCENT, linewidth=2)
    )
    axes.text(
        0.5, -0.08, "framed: the mean of all dropped", transform=axes.transAxes, ha="center", color=ACCENT
    )


def show_answer(axes: Axes, text: str) -> None:
    """Show the language model as a box, and what it says."""
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.add_patch(plt.Rectangle((0.02, 0.5), 0.96, 0.3, facecolor="#eaf0f6", edgecolor=INK, linewidth=1.5))
    axes.text(0.5, 0.65, "projector and language model", ha="center", va="center", fontsize=11, color=INK)
    axes.text(0.5, 0.37, "➜", rotation=-90, ha="center", va="center", fontsize=20, color=FAINT)
    axes.text(0.5, 0.17, f"“{text}”", ha="center", va="center", fontsize=16, color=ACCENT)


if __name__ == "__main__":
    sys.exit(main())
