"""Which kinds of questions the recipe learns, one at a time: a short stage 2 for each, and what it is worth.

``python -m playground.hard_shapes.recipe --work BUILD_FOLDER`` takes CLIP, the pretrained language model and
the projector of stage 1 from a build of ``--preset full`` and trains stage 2 on questions of one kind alone.
It goes on where it was when it is run again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from llava.assistant import Assistant
from llava.errors import UserError
from llava.eval.benchmark import Question, Response
from llava.eval.files import NUMBER, read_json, require_keys, write_json
from llava.markdown import markdown_table
from llava.messages import Request, answer_of
from llava.model.multimodal_encoder.reducers.registry import parse_reduction
from llava.options import CommandParser, positive
from llava.utils import exit_on_user_error
from playground.hard_shapes.benchmark import BENCHMARK
from playground.hard_shapes.make_data import stage2_sample
from playground.hard_shapes.presets import HARD_PRESETS
from playground.hard_shapes.questions import KINDS
from playground.shapes.plan import stage_folders
from playground.shapes.stages import run_stage2

NEEDED = ("clip-shapes", "llama", "pictures")


def train_kind(work: Path, kind: str, reduction: str, samples: int) -> tuple[Path, float | None]:
    """Train stage 2 on one kind of questions.

    Args:
        work: Folder of a build.
        kind: One of `KINDS`.
        reduction: What the reducer is set to.
        samples: How many; at most as many pictures.

    Returns:
        The checkpoint, and the minutes that its training took, all pieces together; None if not known.
    """
    batch = HARD_PRESETS["full"].stage2_batch
    projector = stage_folders(work, reduction)[0] / "mm_projector.bin"
    if missing := [name for name in (*NEEDED, projector) if not (work / name).exists()]:
        raise UserError(f"{work} lacks {missing[0]}: run build.sh --preset full --work {work} up to stage 1")
    name = f"only-{kind}-{reduction.replace(':', '-')}-{samples}"
    data, output = work / f"{name}.json", work / name
    pictures = len(list((work / "pictures").glob("*.jpg")))
    if not data.exists():
        write_json(data, [stage2_sample(n, pictures, batch, [kind]) for n in range(samples)], indent=0)
    minutes = work / f"{name}.minutes.json"
    if not output.exists():
        with adding_minutes(minutes, is_begun=(work / f"{name}.unfinished").exists()):
            run_stage2(work, reduction, projector, batch, output, data)
    return output, _read_minutes(minutes)


@contextmanager
def adding_minutes(file: Path, is_begun: bool) -> Iterator[None]:
    """Keep the minutes that the block takes, and those of earlier pieces of the same training.

    The file is away meanwhile, so that a piece that is killed leaves the minutes unknown, not too low.

    Args:
        file: Where they are kept.
        is_begun: Whether there are earlier pieces.
    """
    earlier = _read_minutes(file) if is_begun else 0.0
    file.unlink(missing_ok=True)
    began = time.monotonic()
    try:
        yield
    finally:
        if earlier is not None:
            write_json(file, {"minutes": earlier + (time.monotonic() - began) / 60})


def _read_minutes(file: Path) -> float | None:
    """Return the minutes that a file has, None if it is not there."""
    if not file.exists():
        return None
    minutes: float = require_keys(read_json(file), ["minutes"], str(file), minutes=NUMBER)["minutes"]
    return minutes


def score(checkpoint: Path, reduction: str, questions: Sequence[Question]) -> float:
    """Return the percentage of right answers."""
    assert BENCHMARK.mark is not None
    assistant = Assistant.load(str(checkpoint), token_reduction=reduction)
    requests = [
        Request.ask(one.text, one.image, template=BENCHMARK.template, generation=BENCHMARK.generation)
        for one in questions
        if one.image is not None
    ]
    points = []
    for question, result in zip(questions, assistant.answer_all(requests), strict=True):
        points.append(BENCHMARK.mark(Response(question, answer_of(result).text)).points)
    return 100 * fmean(points)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure one kind at a time."""
    parser = CommandParser(prog="python -m playground.hard_shapes.recipe", description=main.__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of a build, up to stage 1")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--reduction", default="TRIM:-1", metavar="SPEC")
    parser.add_argument("--samples", type=positive, default=6_400, help="of stage 2 (default: 6400)")
    parser.add_argument("--questions", type=positive, default=200, help="of validation (default: 200)")
    options = parser.parse_args(argv)
    options.reduction = str(parse_reduction(options.reduction))
    options.work = options.work.resolve()
    asked = BENCHMARK.load(Path(), "validation")
    table = []
    for kind in options.kinds:
        checkpoint, minutes = train_kind(options.work, kind, options.reduction, options.samples)
        own = [question for question in asked if question.group == kind][: options.questions]
        right = score(checkpoint, options.reduction, own)
        told = "-" if minutes is None else f"{minutes:.1f}"
        row = [kind, str(options.samples), told, f"{right:.1f}"]
        print(json.dumps(row), flush=True)
        table.append(row)
    print(markdown_table(["kind", "samples", "minutes", "right, %"], table))


if __name__ == "__main__":
    sys.exit(main())
