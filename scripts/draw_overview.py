"""Draw images/overview.png: two questions about one image, and the patches that TRIM keeps for each.

Everything shown is what the bundled model did. Needs matplotlib, which the extra ``dev`` brings.
"""

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
QUESTIONS = ("What shape is the green object?", "What shape is the yellow object?")
INK, ACCENT, FAINT = "#22313f", "#c0392b", "#8795a1"
WIDTH, HEIGHT = 12.9, 5.75  # inches
PANEL = 3.5  # side of an image, in inches
TILES_PER_ROW = 16


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Ask the bundled model and draw which patches it read."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=IMAGES / "crowded.png", help="a square image")
    parser.add_argument("--questions", nargs=2, default=QUESTIONS, metavar="QUESTION")
    parser.add_argument("--model-path", help="checkpoint folder (default: the bundled shapes model)")
    parser.add_argument("--output", type=Path, default=IMAGES / "overview.png")
    arguments = parser.parse_args(argv)
    image = load_image(arguments.image)
    assistant = Assistant.load(arguments.model_path)
    answers = [(question, assistant.answer(question, image)) for question in arguments.questions]
    draw(image, answers).savefig(arguments.output, dpi=100)


def draw(image: Image.Image, answers: Sequence[tuple[str, Answer]]) -> Figure:
    """Put the image on the left, and a column per question beside it.

    Args:
        image: A square image, so that the model's grid is the image's own.
        answers: Two questions, and what the model answered from which patches.

    Returns:
        The figure.
    """
    figure = plt.figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    patches = answers[0][1].cost.patches
    middle = 0.35 + PANEL / 2
    add_panel(figure, 0.35, image, "One image")
    add_text(figure, middle, 1.5, f"{patches} patches", INK, 13)
    add_text(figure, middle, 1.04, f"Without TRIM: {patches} visual tokens.", FAINT, 11)
    add_text(figure, middle, 0.75, "With TRIM: the patches kept for the question,", FAINT, 11)
    add_text(figure, middle, 0.46, "and the mean of all others (framed).", FAINT, 11)
    for left, (question, answer) in zip((4.7, 9.05), answers, strict=True):
        add_column(figure, left, image, question, answer)
    return figure


def add_column(figure: Figure, left: float, image: Image.Image, question: str, answer: Answer) -> None:
    """Draw a question, the patches kept for it, the tokens they become, and the answer.

    Args:
        figure: Where to draw.
        left: Distance of the column from the left, in inches.
        image: What was asked about.
        question: Its title.
        answer: What the model said, and which patches it kept.
    """
    kept = np.asarray(answer.kept[0])
    middle = left + PANEL / 2
    add_panel(figure, left, draw_kept(image.resize((1024, 1024)), kept), f"“{question}”", ACCENT)
    add_text(figure, middle, 1.5, f"{answer.cost.visual_tokens} visual tokens", INK, 13)
    tiles = add_axes(figure, left, 0.82, PANEL, 2 * PANEL / TILES_PER_ROW)
    show_tokens(tiles, image, kept)
    add_text(figure, middle, 0.35, f"➜  “{answer.text}”", ACCENT, 16)


def add_panel(figure: Figure, left: float, image: Image.Image, title: str, color: str = INK) -> None:
    """Show an image with a title above it, ``left`` inches from the left."""
    axes = add_axes(figure, left, 1.75, PANEL, PANEL)
    axes.imshow(np.asarray(image.resize((700, 700), Image.Resampling.LANCZOS)))
    add_text(figure, left + PANEL / 2, 1.75 + PANEL + 0.25, title, color, 13)


def add_axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes without lines at a place in inches."""
    axes = figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.set_axis_off()
    return axes


def add_text(figure: Figure, x: float, y: float, text: str, color: str, size: float) -> None:
    """Write a line around a place in inches."""
    figure.text(x / WIDTH, y / HEIGHT, text, color=color, fontsize=size, ha="center", va="center")


def show_tokens(axes: Axes, image: Image.Image, kept: np.ndarray) -> None:
    """Show the kept patches as tiles in raster order, and the mean of the others, framed, as the last one.

    Args:
        axes: Where to draw.
        image: The image.
        kept: Which patches stayed, bool (rows, columns).
    """
    rows, columns = kept.shape
    side = 16
    pixels = np.asarray(image.resize((columns * side, rows * side), Image.Resampling.LANCZOS))
    patches = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)  # (rows, columns, side, side, 3)
    merged = np.broadcast_to(patches[~kept].mean(axis=(0, 1, 2)), (side, side, 3)).astype(np.uint8)
    tiles = [*patches[kept], merged]
    per_row = min(TILES_PER_ROW, len(tiles))
    start = (TILES_PER_ROW - per_row) / 2
    for index, tile in enumerate(tiles):
        row, column = divmod(index, per_row)
        axes.imshow(tile, extent=(start + column + 0.06, start + column + 0.94, -row - 0.94, -row - 0.06))
    row, column = divmod(len(tiles) - 1, per_row)
    corner = (start + column + 0.06, -row - 0.94)
    axes.add_patch(plt.Rectangle(corner, 0.88, 0.88, fill=False, edgecolor=ACCENT, linewidth=2))
    axes.set_xlim(0, TILES_PER_ROW)
    axes.set_ylim(-2, 0)


if __name__ == "__main__":
    sys.exit(main())
