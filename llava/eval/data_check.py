"""Which benchmarks are in place, and what is missing of the others."""

from __future__ import annotations

from pathlib import Path

from llava.errors import MissingFileError, UserError
from llava.eval.benchmark import Benchmark
from llava.eval.files import is_there, read_json

DATA = Path("playground/data/eval")
MINIATURE_FILE = "MINIATURE.json"


def choose_split(benchmark: Benchmark, split: str | None, data: Path = DATA) -> str:
    """Return a split of a benchmark; empty where there is only one.

    Args:
        benchmark: The benchmark.
        split: Its name; if missing, the first split that is in place, or else the first.
        data: Folder of all benchmarks.

    Raises:
        UserError: If there is no such split.
    """
    if split is None:
        in_place = [name for name in benchmark.splits if not missing_of(benchmark, data, name)]
        return [*in_place, *benchmark.splits, ""][0]
    if split not in benchmark.splits:
        accepted = ", ".join(benchmark.splits) or "none, it has only one"
        raise UserError(f"{benchmark.name} has no split {split!r}; accepted: {accepted}")
    return split


def needs_of(benchmark: Benchmark, split: str) -> list[str]:
    """Return what a split needs, below the benchmark's folder; alternatives are joined by ``|``."""
    return [need.format(split=split, images=benchmark.images(split)) for need in benchmark.needs]


def missing_of(benchmark: Benchmark, data: Path, split: str) -> list[str]:
    """Return what of it is not there; an empty folder is not."""
    folder = data / benchmark.folder
    return [
        " or ".join(need.split("|"))
        for need in needs_of(benchmark, split)
        if not any(_is_in_place(folder / name) for name in need.split("|"))
    ]


def _is_in_place(path: Path) -> bool:
    """Tell whether a file is there, or a folder that holds something."""
    return is_there(path) and (not path.is_dir() or any(path.iterdir()))


def require_data(benchmark: Benchmark, data: Path, split: str) -> Path:
    """Return the benchmark's folder.

    Raises:
        MissingFileError: If something is not in place.
    """
    folder = data / benchmark.folder
    if missing := missing_of(benchmark, data, split):
        raise MissingFileError(
            f"{benchmark.name} is not in place: {folder} lacks {', '.join(missing)}; "
            "playground/data/README.md says where to get it"
        )
    return folder


def is_miniature(data: Path) -> bool:
    """Tell whether the data are the miniatures of the shapes world."""
    path = data / MINIATURE_FILE
    return path.exists() and isinstance(read_json(path), dict)


def describe_needs(benchmark: Benchmark) -> str:
    """Return a line about a benchmark: its name, and what it needs in which folder."""
    needs = ", ".join(
        need.replace("|", " or ") for need in needs_of(benchmark, choose_split(benchmark, None))
    )
    return f"{benchmark.name:<12} {benchmark.folder}/: {needs}"


def describe_place(benchmark: Benchmark, data: Path) -> str:
    """Return a line about a benchmark: in place, or what is missing."""
    missing = missing_of(benchmark, data, choose_split(benchmark, None, data))
    state = f"missing in {data / benchmark.folder}: {', '.join(missing)}" if missing else "in place"
    return f"{benchmark.name:<12} {state}"
