"""Outlines of the shapes, as corners in the square from -0.5 to 0.5 around a thing's center, y downward."""

import math

Outline = list[tuple[float, float]]


def outlines(shape: str) -> list[tuple[Outline, int]]:
    """Outlines of a shape in the square from -0.5 to 0.5, each with its ink: 255 adds, 0 cuts out."""
    if shape == "ring":
        return [(_round(0.5), 255), (_round(0.27), 0)]
    whole = {
        "circle": _round(0.5),
        "square": [(-0.45, -0.45), (0.45, -0.45), (0.45, 0.45), (-0.45, 0.45)],
        "triangle": [(0.0, -0.48), (0.5, 0.42), (-0.5, 0.42)],
        "star": _star(),
        "heart": _heart(),
        "cross": _cross(0.16),
    }
    return [(whole[shape], 255)]


def _round(radius: float, corners: int = 48) -> Outline:
    turns = [2 * math.pi * step / corners for step in range(corners)]
    return [(radius * math.cos(turn), radius * math.sin(turn)) for turn in turns]


def _star(points: int = 5) -> Outline:
    radii = [0.54, 0.22]
    turns = [math.pi * step / points for step in range(2 * points)]
    return [
        (radii[step % 2] * math.sin(turn), 0.03 - radii[step % 2] * math.cos(turn))
        for step, turn in enumerate(turns)
    ]


def _heart() -> Outline:
    turns = [2 * math.pi * step / 48 for step in range(48)]
    return [
        (
            16 * math.sin(turn) ** 3 / 33,
            -(13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)) / 31
            - 0.08,
        )
        for turn in turns
    ]


def _cross(half: float) -> Outline:
    return [
        (-half, -0.5), (half, -0.5), (half, -half), (0.5, -half), (0.5, half), (half, half),
        (half, 0.5), (-half, 0.5), (-half, half), (-0.5, half), (-0.5, -half), (-half, -half),
    ]  # fmt: skip
