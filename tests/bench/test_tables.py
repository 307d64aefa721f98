"""Reports as tables, and the page that they are on."""

from dataclasses import replace
from pathlib import Path

from llava.bench import results, tables
from tests.bench.made_reports import growing, report, row

ROOT = Path(__file__).parents[2]
ANSWERS = report(
    row("none", 1, 576, 100.0, vision=30.0),
    row("TRIM:0.21", 1, 121, 44.0, vision=30.0, text=8.0),
)


def cells(text: str, name: str) -> list[str]:
    """Return the cells of the first line of this name."""
    lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return next(line[1:] for line in lines if line[0] == name)


def test_answers_are_beside_those_without_reduction():
    text = tables.render(ANSWERS)
    assert text.startswith("## tiny, random weights, float32, CPU, 2 cores, 2026-01-02\n")
    assert "100 GFLOP/s (98 to 103)" in text
    assert "415.3 M parameters" in text
    assert cells(text, "visual tokens") == ["576.0", "121.0"]
    assert cells(text, "vision encoder, ms") == ["30 (29 to 32)"] * 2
    assert cells(text, "text tower, ms") == ["-", "8 (7 to 10)"]
    assert cells(text, "first token, ms") == ["100 (99 to 102)", "44 (43 to 46)"]
    assert cells(text, "of that of `none`") == ["1.000", "0.440"]
    assert cells(text, "KV cache, MiB") == ["288", "60.5"]
    assert cells(text, "prefill") == ["576 (90.0%)", "121 (90.0%)"]


def test_what_was_not_counted_is_absent():
    text = tables.render(replace(ANSWERS, rows=tuple(replace(one, peak_mib=None) for one in ANSWERS.rows)))
    assert cells(text, "peak memory, MiB") == ["-", "-"]


def test_growth_has_lines_and_says_where_it_ends():
    text = tables.render(growing())
    assert "- first token, ms: 100 + 2 for every visual token (R² 1.0000, measured 1 to 64)" in text
    assert "- `TRIM:0.21`, KV cache, MiB: 0 + 7 for every answer of the batch" in text
    assert "fewer than 44 of 64 save time in all" in text
    assert "Below 7.78 visual tokens another halving saves less than 5%" in text


def test_the_page_in_the_docs_is_what_the_command_makes_of_the_committed_results():
    path = ROOT / "docs" / "benchmarks.md"
    page = path.read_text(encoding="utf-8")
    reports = sorted((ROOT / "docs" / "benchmarks" / "bench").glob("*.json"))
    assert page == results.put_between_marks(page, tables.generated(reports, path))


def test_a_page_has_the_newest_first_and_pictures_where_there_are_any(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(f"{results.BEGIN}\n{results.END}\n")
    (tmp_path / "results").mkdir()
    for name, date in (("old", "2025-01-01"), ("new", "2026-01-01")):
        (tmp_path / "results" / f"{name}.json").write_text(replace(ANSWERS, date=date).as_json())
    (tmp_path / "results" / "new.png").touch()
    files = [str(tmp_path / "results" / f"{name}.json") for name in ("old", "new")]
    assert tables.main([*files, "--into", str(page)]) == 0
    text = page.read_text()
    assert text.index("2026-01-01") < text.index("2025-01-01")
    assert "![tiny, random weights, float32, CPU, 2 cores, 2026-01-01](results/new.png)" in text
    assert "old.png" not in text
