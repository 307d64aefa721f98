"""From results to Markdown: ``python -m llava.bench.gpu_check.tables FILE.json`` prints the tables.

``--into docs/gpu.md`` writes them between the marks of that page instead, so that nothing there is typed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llava.bench.gpu_check.parts import PARTS, Row
from llava.bench.results import read_json, show
from llava.bench.stages import FIRST_TOKEN
from llava.markdown import markdown_table
from llava.options import CommandParser
from llava.utils import exit_on_user_error

SCHEMA = 1
NOTHING = "Not measured yet.\n"
ABSENT = "-"
BASELINE = "none"


def tables(document: dict[str, Any]) -> str:
    """Return the tables of one run."""
    machine = document["machine"]
    lines = [
        f"## {machine['card']}, {document['date'][:10]}",
        "",
        f"`{document['command']}`, commit `{machine['commit'][:12]}`, driver {machine['driver'] or ABSENT}, "
        f"CUDA {machine['cuda'] or ABSENT}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}, Python {machine['python']}, {machine['cores']} CPU cores.",
        "",
    ]
    for part in PARTS:
        if part.name in document["parts"]:
            lines += [f"### {part.title}", "", *_part(part.name, document["parts"][part.name])]
    return "\n".join(lines).rstrip() + "\n"


def _part(name: str, found: dict[str, Any]) -> Iterable[str]:
    """Give the lines of one part, an empty one at the end."""
    if "message" in found:
        yield f"{found['status']}: {found['message']}"
        yield ""
    rows = found["results"]
    if rows:
        yield from TABLES[name](rows)
        yield ""


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return markdown_table(header, rows, aligned=False).splitlines()


def _agreement(rows: Sequence[Row]) -> list[str]:
    header = ["dtype", "same patches", "same counts", "same greedy answer", "worst logit difference"]
    return _table(
        header,
        [
            [
                row["dtype"],
                *(f"{row[what]} of {row['cases']}" for what in ("kept", "counts", "ids")),
                f"{row['worst_logit_difference']:.1e}",
            ]
            for row in rows
        ],
    )


def _flips(rows: Sequence[Row]) -> list[str]:
    kinds = {"in_batches": "in batches of 16 instead of alone", "from_cpu": "instead of float32 on the CPU"}
    header = ["dtype", "compared", "patches", "in pairs", "answers"]
    return _table(
        header,
        [
            [
                row["dtype"],
                words,
                f"{row[kind]['patches']} of {row['patches']:,}",
                *(f"{row[kind][what]} of {row['pairs']}" for what in ("pairs", "answers")),
            ]
            for row in rows
            for kind, words in kinds.items()
        ],
    )


def _selection(rows: Sequence[Row]) -> list[str]:
    header = ["reduction", "visual tokens", "scores", "reducer", "both, replayed", "host waits", "where"]
    return _table(
        header,
        [
            [
                f"`{row['reduction']}`",
                f"{row['visual_tokens']:.1f}",
                f"{row['scores_ms']:.3f} ms",
                f"{row['reducer_ms']:.3f} ms",
                f"{row['replayed_ms']:.3f} ms" if "replayed_ms" in row else ABSENT,
                *_waits(row["synchronisations"]),
            ]
            for row in rows
        ],
    )


def _waits(lines: list[str] | None) -> tuple[str, str]:
    """Count the places where the host waited, and name each of them once."""
    if lines is None:
        return "not counted on this device", ABSENT
    return str(len(lines)), ", ".join(f"`{line}`" for line in dict.fromkeys(lines)) or ABSENT


def _inference(rows: Sequence[Row]) -> list[str]:
    first, *measured = rows
    fitting = [row for row in measured if "skipped" not in row]
    unreduced = {(row["model"], row["batch"]): row for row in fitting if row["reduction"] == BASELINE}
    lines = [
        f"{first['dtype']}, attention `{first['attention']}`, random weights, {first['new_tokens']} new "
        f"tokens, medians of {first['repeats']}. Measured in the same run: copies at "
        f"{first['copy_gb_per_s']:,.0f} GB/s, matrix products at {first['matmul_tflop_per_s']:,.1f} TFLOP/s. "
        f"In brackets the ratio to `{BASELINE}`; what is furthest from its floor is named with the "
        "milliseconds between them.",
        "",
    ]
    header = ["model", "batch", "reduction", "visual tokens", "first token", "its floor", "furthest from it"]
    lines += _table(
        [*header, "decode step", "tokens/s", "peak MiB", "cache MiB"],
        [_answer_row(row, unreduced.get((row["model"], row["batch"]))) for row in fitting],
    )
    lines += ["", "Milliseconds of each stage; in brackets the ratio to its floor and what binds there.", ""]
    lines += _table(
        ["model", "batch", "reduction", *FIRST_TOKEN, "decode step"],
        [
            [
                *_setting(row),
                *(_beside_floor(row["stages"].get(stage)) for stage in FIRST_TOKEN),
                _beside_floor(row["decode"]),
            ]
            for row in fitting
        ],
    )
    missing = [row for row in measured if "skipped" in row]
    lines += [""] * bool(missing)
    return lines + [f"- {', '.join(_setting(row))}: skipped, {row['skipped']}" for row in missing]


def _graphs(rows: Sequence[Row]) -> list[str]:
    header = ["batch", "reduction", "graphs", "vision", "text", "selection", "prefill", "first token"]
    return _table(
        [*header, "decode step", "whole answer", "first time more"],
        [
            [
                str(row["batch"]),
                f"`{row['reduction']}`",
                "on" if row["graphs"] else "off",
                *(
                    _milliseconds(row["stages_ms"].get(stage))
                    for stage in ("vision", "text", "selection", "prefill")
                ),
                _milliseconds(sum(row["stages_ms"].values())),
                *(_milliseconds(row[what]) for what in ("decode_ms", "answer_ms", "first_time_ms")),
            ]
            for row in rows
        ],
    )


def _milliseconds(figure: float | None) -> str:
    return ABSENT if figure is None else f"{figure:.2f} ms"


def _setting(row: Row) -> list[str]:
    """Name a model, a batch and a reduction; what does not fit may be all batches of a model."""
    return [row["model"], str(row.get("batch", "any batch")), f"`{row.get('reduction', 'any reduction')}`"]


def _answer_row(row: Row, unreduced: Row | None) -> list[str]:
    """Write what an answer takes, beside the same without reduction, where that was measured."""

    def ratio(figure: float, baseline: Callable[[Row], float]) -> str:
        return f" ({figure / baseline(unreduced):.2f})" if unreduced is not None else ""

    first, decode = row["first_token"]["ms"], row["decode"]["ms"]
    stage, gap = _furthest(row)
    return [
        *_setting(row),
        f"{row['visual_tokens']:.1f}",
        f"{first:.1f} ms{ratio(first, lambda other: other['first_token']['ms'])}",
        f"{row['first_token']['floor_ms']:.1f} ms",
        f"{stage}, {gap:.1f} ms",
        f"{decode:.2f} ms{ratio(decode, lambda other: other['decode']['ms'])}",
        f"{row['tokens_per_s']:.1f}",
        ABSENT if row["peak_mib"] is None else f"{row['peak_mib']:,.0f}",
        f"{row['cache_mib']:,.1f}",
    ]


def _furthest(row: Row) -> tuple[str, float]:
    """Return the stage before the first token with the most milliseconds above its floor, and these."""
    gaps = {stage: lap["ms"] - lap.get("floor_ms", 0) for stage, lap in row["stages"].items()}
    stage = max(gaps, key=gaps.__getitem__)
    return stage, gaps[stage]


def _beside_floor(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ABSENT
    floor = f" ({figure['ratio']:.1f}, {figure['bound']})" if "ratio" in figure else ""
    return f"{figure['ms']:.2f}{floor}"


def _training(rows: Sequence[Row]) -> list[str]:
    header = ["reduction", "visual tokens", "vision", "forward", "backward", "optimizer", "step", "ratio"]
    return _table(
        [*header, "tokens/s", "peak MiB"],
        [
            [
                f"`{row['reduction']}`",
                f"{row['visual_tokens']:.0f}",
                *(f"{row[what]:.1f} ms" for what in ("vision_ms", "forward_ms", "backward_ms")),
                f"{row['optimizer_ms']:.1f} ms",
                f"{row['step_ms']:.1f} ms",
                f"{row['ratio']:.3f}",
                f"{row['tokens_per_s']:,.0f}",
                f"{row['peak_mib']:,.0f}" if row["peak_mib"] else ABSENT,
            ]
            for row in rows
        ],
    )


def _loading(rows: Sequence[Row]) -> list[str]:
    header = ["weights", "reading their bytes", "loading", "ratio", "peak of host memory", "of the weights"]
    return _table(
        header,
        [
            [
                f"{row['gib']:.2f} GiB, {row['dtype']}",
                f"{row['read_s']:.2f} s",
                f"{row['load_s']:.2f} s",
                f"{row['ratio']:.2f}",
                f"{row['peak_host_mib']:,.0f} MiB",
                f"{row['peak_share']:.2f}",
            ]
            for row in rows
        ],
    )


def _bundled(rows: Sequence[Row]) -> list[str]:
    header = ["device", "dtype", "batch", "right", "questions per second", "answers unlike the CPU's"]
    lines = _table(
        header,
        [
            [
                row["device"],
                row["dtype"],
                row["batch"],
                f"{row['right']} of {row['questions']:,} ({row['right'] / row['questions']:.1%})",
                f"{row['questions_per_s']:.1f}",
                len(row["differing"]),
            ]
            for row in rows
        ],
    )
    for row in rows:
        lines += [
            f"- {row['dtype']}, batch {row['batch']}, question {one['number']}: {one['question']!r}, "
            f"CPU {one['cpu']!r}, {row['device']} {one['device']!r}"
            for one in row["differing"]
        ]
    return lines


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "agreement": _agreement,
    "flips": _flips,
    "selection": _selection,
    "inference": _inference,
    "graphs": _graphs,
    "training": _training,
    "loading": _loading,
    "bundled": _bundled,
}


def generated(paths: Sequence[Path]) -> str:
    """Return the tables of all runs, the newest first."""
    documents = sorted(
        (read_json(path, SCHEMA) for path in paths), key=lambda document: document["date"], reverse=True
    )
    return "\n".join(map(tables, documents)) or NOTHING


@exit_on_user_error
def main(arguments: list[str] | None = None) -> None:
    """Print the tables of results, or put them into a page."""
    parser = CommandParser(prog="python -m llava.bench.gpu_check.tables", description=main.__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="results of scripts/gpu_check.sh")
    parser.add_argument("--into", type=Path, help="page with marks, such as docs/gpu.md")
    options = parser.parse_args(arguments)
    show(generated(options.files), options.into)


if __name__ == "__main__":
    sys.exit(main())
