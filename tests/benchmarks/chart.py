"""A line chart as SVG text. A library that draws would be a dependency larger than the product, for three pictures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 84, 24, 48, 56
COLOURS = ("#1f6f8b", "#c8553d", "#588157", "#6d597a")
INK, PALE = "#333333", "#dddddd"


@dataclass(frozen=True, slots=True)
class Line:
    """A named line through points, each an x, a y, and how far y spread: (x, y, lowest, highest)."""

    name: str
    points: Sequence[tuple[float, float, float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis from `low` to `high`; a logarithmic one needs both above 0."""

    title: str
    low: float
    high: float
    logarithmic: bool = False

    def share(self, value: float) -> float:
        """Where on the axis a value lies, from 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values on the axis, few enough to be read."""
        if self.logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [
                tick for power in powers for tick in (10.0**power,) if self.low <= tick <= self.high * 1.001
            ]
        step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
        while (self.high - self.low) / step > 8:
            step *= 2
        first = math.ceil(self.low / step)
        return [number * step for number in range(first, math.floor(self.high / step * (1 + 1e-9)) + 1)]


def draw(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """The chart; spreads as vertical bars."""

    def across(value: float) -> float:
        return LEFT + x.share(value) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - y.share(value) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 22, title, size=15),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.title, anchor="middle"),
        _text(
            16,
            (TOP + HEIGHT - BOTTOM) / 2,
            y.title,
            anchor="middle",
            turned=f"rotate(-90 16 {(TOP + HEIGHT - BOTTOM) / 2:.0f})",
        ),
    ]
    for tick in y.ticks():
        parts.append(_line(LEFT, up(tick), WIDTH - RIGHT, up(tick), PALE))
        parts.append(_text(LEFT - 8, up(tick) + 4, short(tick), anchor="end"))
    for tick in x.ticks():
        parts.append(_line(across(tick), HEIGHT - BOTTOM, across(tick), HEIGHT - BOTTOM + 5, INK))
        parts.append(_text(across(tick), HEIGHT - BOTTOM + 20, short(tick), anchor="middle"))
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, INK))
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        way = " ".join(f"{across(at):.1f},{up(value):.1f}" for at, value, _, _ in line.points)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for at, value, lowest, highest in line.points:
            parts.append(_line(across(at), up(lowest), across(at), up(highest), colour))
            parts.append(f'<circle cx="{across(at):.1f}" cy="{up(value):.1f}" r="3" fill="{colour}"/>')
        parts.append(_text(LEFT + 12, TOP + 16 * number, line.name, colour=colour))
    return "\n".join([*parts, "</svg>", ""])


def short(number: float) -> str:
    """`20k`, `2.5M`, `0.5`."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = INK,
    turned: str = "",
) -> str:
    turn = f' transform="{turned}"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}"{turn}>'
        f"{escape(words)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
