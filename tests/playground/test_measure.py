"""The table of right answers by kind of question."""

from playground.shapes.measure import Result, report


def test_a_kind_that_was_not_asked_leaves_its_cell_empty():
    few = Result("TRIM:-1", {"color": 1.0, "presence": 0.5, "all": 0.75}, {}, 29.25, 1.0)
    every = Result("none", {"color": 0.0, "shape": 1.0, "presence": 1.0, "all": 0.9}, {}, 256.0, 1.0)
    header, _, *rows = report([few, every]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *rows)]
    assert cells == [
        ["reduction", "color", "shape", "presence", "all", "visual tokens"],
        ["`TRIM:-1`", "100.0%", "-", "50.0%", "75.0%", "29.2"],
        ["`none`", "0.0%", "100.0%", "100.0%", "90.0%", "256.0"],
    ]
