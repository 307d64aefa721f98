"""Tables in Markdown, for reports and for the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(
    header: Sequence[object], rows: Iterable[Sequence[object]], *, aligned: bool = True
) -> str:
    """Return a table; what would end a cell in one is escaped.

    Args:
        header: Of the columns.
        rows: Of as many cells.
        aligned: Whether columns line up in the text too.
    """
    cells = [[" ".join(str(cell).split()).replace("|", r"\|") for cell in line] for line in (header, *rows)]
    widths = [max(map(len, column)) if aligned else 3 for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    if aligned:
        cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
