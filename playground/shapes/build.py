"""Everything from nothing to the shapes checkpoints, step by step.

Run through ``build.sh``. A step whose result is there already is left out, and the long ones go on where they
were, so after an interruption the same command is all it takes.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llava.errors import UserError
from llava.options import CommandParser
from llava.utils import exit_on_user_error
from playground.hard_shapes.presets import HARD_PRESETS
from playground.shapes.presets import PRESETS

if TYPE_CHECKING:
    from playground.shapes.plan import Step

HERE = Path(__file__).resolve().parent


def build(steps: "list[Step]") -> None:
    """Run the steps whose result is not there yet, with the time each takes."""
    for number, step in enumerate(steps, start=1):
        label = f"[{number}/{len(steps)}] {step.name}"
        if step.result and step.result.exists():
            print(f"{label}: there already", flush=True)
            continue
        print(f"{label} ...", flush=True)
        began = time.monotonic()
        step.run()
        print(f"{label}: done in {(time.monotonic() - began) / 60:.1f} min", flush=True)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Build a preset."""
    parser = CommandParser(
        prog="build.sh",
        description="Make the shapes checkpoints from nothing. Run it again to go on after a stop.",
    )
    parser.add_argument(
        "--preset",
        choices=sorted({**PRESETS, **HARD_PRESETS}),
        default="small",
        help="sizes; full is of crowded scenes (default: small)",
    )
    parser.add_argument("--work", type=Path, help="folder of all that lies between (default: build/PRESET)")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the checkpoints (default: WORK/checkpoints)",
    )
    parser.add_argument(
        "--reductions",
        nargs="+",
        metavar="SETTING",
        help="what language models are trained with; another than TRIM:-1 makes a checkpoint of that name, "
        "such as llava-shapes-none (default: TRIM:-1; of crowded scenes none and TRIM:-1)",
    )
    arguments = parser.parse_args(argv)
    # Only now: these take seconds, and --help needs none of them.
    import torch

    from llava.model.multimodal_encoder.reducers.registry import parse_reduction
    from playground.hard_shapes.plan import HARD_KIT
    from playground.shapes.plan import SHAPES_KIT, claim_folder, plan, refuse_other_clip

    is_hard = arguments.preset in HARD_PRESETS
    asked_for = arguments.reductions or (["none", "TRIM:-1"] if is_hard else ["TRIM:-1"])
    reductions = tuple(str(parse_reduction(setting)) for setting in asked_for)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    work = (arguments.work or HERE / "build" / arguments.preset).resolve()
    output = (arguments.output or work / "checkpoints").resolve()
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {work} could not be made: {error.strerror}") from error
    preset = HARD_PRESETS[arguments.preset] if is_hard else PRESETS[arguments.preset]
    kit = HARD_KIT if is_hard else SHAPES_KIT
    refuse_other_clip(kit, work, output)
    claim_folder(work, arguments.preset, preset)
    build(plan(kit, preset, work, output, reductions))
    print(f"checkpoints in {output}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
