"""``llava ask``: one question about one image, or about none, answered with what it cost."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from llava.errors import MissingFileError, UserError
from llava.image_io import load_image_or_url
from llava.options import add_generation_options, add_model_options, load_assistant, read_generation, utf8
from llava.utils import printable, printable_json, refuse_overwriting
from llava.visualize import draw_kept

if TYPE_CHECKING:
    from llava.messages import Answer, Cost

KEPT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tiff")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``llava ask``."""
    parser.add_argument("question", type=utf8, help="what to ask")
    parser.add_argument("--image", metavar="FILE", help="what it is about: a file, or an http(s) URL")
    parser.add_argument("--json", action="store_true", help="print one JSON object: the answer and its cost")
    parser.add_argument(
        "--show-kept", type=Path, metavar="FILE", help="write the image with the dropped patches dimmed"
    )
    add_generation_options(parser)
    add_model_options(parser)


def run(options: argparse.Namespace) -> None:
    """Answer the question and print the answer.

    Raises:
        UserError: If the question, the image, the model or a setting does not serve.
    """
    # Everything that can be wrong is looked at before the model is loaded, which takes the time.
    if not options.question.strip():
        raise UserError("the question is empty")
    image = None if options.image is None else load_image_or_url(options.image)
    if options.show_kept is not None:
        if image is None:
            raise UserError("--show-kept draws on the image, and there is none; --image FILE names one")
        check_image_path(options.show_kept)
        refuse_overwriting("--show-kept", options.show_kept, options.image)

    generation = read_generation(options)
    assistant = load_assistant(options)
    answer = assistant.answer(options.question, image, generation)
    if options.show_kept is not None and image is not None:
        aspect = getattr(assistant.model.config, "image_aspect_ratio", None)
        save_image(draw_kept(image, answer.kept[0], aspect), options.show_kept)
    print(as_json(answer) if options.json else f"{printable(answer.text)}\n{describe_cost(answer.cost)}")


def check_image_path(path: Path) -> None:
    """Refuse a path that no image can be written to.

    Raises:
        UserError: If its folder is missing or its ending names no image format.
    """
    if not path.absolute().parent.is_dir():
        raise MissingFileError(f"there is no folder {path.absolute().parent} to write {path.name} into")
    if path.is_dir():
        raise UserError(f"{path} is a folder; --show-kept writes a file such as kept.png")
    if path.suffix.lower() not in KEPT_SUFFIXES:
        raise UserError(f"--show-kept {path}: the name must end in one of {', '.join(KEPT_SUFFIXES)}")


def save_image(image: Image.Image, path: Path) -> None:
    """Write an image to a file.

    Raises:
        UserError: If the file cannot be written.
    """
    try:
        image.save(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def describe_cost(cost: "Cost") -> str:
    """One line: how many patches became how many visual tokens, and where the milliseconds went."""
    tokens = "1 token" if cost.new_tokens == 1 else f"{cost.new_tokens} tokens"
    language = f"prefill {cost.prefill_ms:.0f} ms, decode {cost.decode_ms:.0f} ms ({tokens})"
    if not cost.patches:
        return language
    return (
        f"{cost.patches} patches -> {cost.visual_tokens} visual tokens; "
        f"vision {cost.vision_ms:.0f} ms, reduction {cost.reduction_ms:.1f} ms, {language}"
    )


def as_json(answer: "Answer") -> str:
    """The answer and its cost as one JSON object on one line; times in milliseconds."""
    numbers = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in asdict(answer.cost).items()
    }
    return printable_json(json.dumps({"answer": answer.text, **numbers}, ensure_ascii=False))
