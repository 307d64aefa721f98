"""Files of results."""

from pathlib import Path

from llava.bench.results import free_path


def test_no_results_of_the_same_day_are_overwritten(tmp_path: Path):
    names = []
    for _ in range(3):
        path = free_path(tmp_path, "card-2026-01-02")
        path.touch()
        names.append(path.name)
    assert names == ["card-2026-01-02.json", "card-2026-01-02-2.json", "card-2026-01-02-3.json"]
