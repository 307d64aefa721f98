"""Files of results."""

from pathlib import Path

import pytest

from llava.bench.results import BEGIN, END, free_path, show, write_results


def test_no_results_of_the_same_day_are_overwritten(tmp_path: Path):
    names = []
    for _ in range(3):
        path = free_path(tmp_path, "card-2026-01-02")
        path.touch()
        names.append(path.name)
    assert names == ["card-2026-01-02.json", "card-2026-01-02-2.json", "card-2026-01-02-3.json"]


@pytest.fixture
def interrupted(monkeypatch):
    """Ends the program while it writes a file."""
    write = Path.write_text

    def write_half(path, text, **settings):
        write(path, text[: len(text) // 2], **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", write_half)


@pytest.fixture
def written(tmp_path):
    """Results of the parts that are done."""
    path = tmp_path / "card.json"
    write_results(path, '{"parts": 1}\n', "| 1 |\n")
    return path


def test_results_of_earlier_parts_outlive_an_end_while_the_next_are_written(written, interrupted):
    with pytest.raises(KeyboardInterrupt):
        write_results(written, '{"parts": 2}\n', "| 2 |\n")
    assert written.read_text() == '{"parts": 1}\n'
    assert written.with_suffix(".md").read_text() == "| 1 |\n"
    assert len(list(written.parent.iterdir())) == 2


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(f"Before\n{BEGIN}\nold\n{END}\nAfter\n")
    return path


def test_a_page_outlives_an_end_while_it_is_written(page, interrupted):
    before = page.read_text()
    with pytest.raises(KeyboardInterrupt):
        show("new", page)
    assert page.read_text() == before


def test_tables_are_put_into_a_page(page):
    show("new", page)
    assert page.read_text() == f"Before\n{BEGIN}\n\nnew\n{END}\nAfter\n"
