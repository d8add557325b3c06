"""Small charts as inline SVG, for the report: no scripts, no fonts, no colours of their own (the page has them).

Every function gives one ``<svg>`` element as text. Classes: a line or dot is ``s0``, ``s1``, … by its place; ``axis``,
``grid``, ``mark``, ``tick`` and ``legend`` are what they say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Point = tuple[float, float]
_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 22, 26, 40
_NUMBERS_MAX, _NAMES_MAX = 12, 30  # classes of a confusion picture with counts in the cells, and with names at the side


@dataclass(frozen=True, slots=True)
class Line:
    """One series: points by rising x, drawn as a line, with dots when ``dots``."""

    name: str
    points: Sequence[Point]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values and what it is called. ``ticks``: (value, words); by default some round numbers. ``log``: by
    the logarithm; the range must be above zero."""

    name: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]] = ()
    log: bool = False

    @classmethod
    def around(cls, name: str, values: Sequence[float]) -> "Axis":
        """A range that holds the values, with a margin."""
        low, high = min(values), max(values)
        margin = (high - low) * 0.08 or max(abs(high) * 0.05, 0.01)
        return cls(name, low - margin, high + margin)

    def place(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high end."""
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (at - low) / (high - low) if high > low else 0.5


def line_chart(lines: Sequence[Line], x: Axis, y: Axis, *, marks: Sequence[tuple[float, str]] = (), title: str) -> str:
    """Lines over a common x. ``marks``: (x, words) as vertical lines. ``title`` is what a screen reader says."""
    body = [*_frame(x, y)]
    for at, words in marks:
        px = _x(x, at)
        anchor, shift = ("end", -4) if x.place(at) > 0.5 else ("start", 4)
        body.append(f'<line class="mark" x1="{px:.1f}" x2="{px:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        body.append(_words("tick", px + shift, _TOP + 11, anchor, words))
    for i, line in enumerate(lines):
        places = [(_x(x, a), _y(y, b)) for a, b in line.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        body.append(f'<polyline class="line s{i}" points="{path}"/>')
        if line.dots:
            told = [f"{line.name}: {b:.4g} at {a:.4g}" for a, b in line.points]
            body += [_dot(f"s{i}", *place, words) for place, words in zip(places, told, strict=True)]
    return _svg(_WIDTH, _HEIGHT, [*body, *_legend(lines)], title)


def reliability_chart(points: Sequence[tuple[float, float, int]]) -> str:
    """Accuracy by confidence, the diagonal being perfect calibration. points: confidence, accuracy, rows."""
    low = math.floor(min(min(c, a) for c, a, _ in points) * 10) / 10
    low = min(low, 0.9)
    x, y = Axis("confidence", low, 1.0), Axis("accuracy", low, 1.0)
    body = [*_frame(x, y)]
    body.append(
        f'<line class="mark" x1="{_x(x, low):.1f}" y1="{_y(y, low):.1f}" x2="{_x(x, 1):.1f}" y2="{_y(y, 1):.1f}"/>'
    )
    path = " ".join(f"{_x(x, c):.1f},{_y(y, a):.1f}" for c, a, _ in points)
    body.append(f'<polyline class="line s0 thin" points="{path}"/>')
    for c, a, n in points:
        body.append(_dot("s0", _x(x, c), _y(y, a), f"confidence {c:.3f}, accuracy {a:.3f}, {n} rows"))
    return _svg(_WIDTH, _HEIGHT, body, "reliability diagram")


def confusion_chart(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Rows the truth, columns the guess; a cell's shade is its share of the row. Counts and names where they fit."""
    size = len(labels)
    named, numbered = size <= _NAMES_MAX, size <= _NUMBERS_MAX
    longest = max((_wide(_short(label)) for label in labels), default=0) if named else 0
    margin = 10 + longest * 6.2 if named else 8
    cell = max(2.0, min(52.0, 340 / size))
    side = cell * size
    font = min(11.0, max(6.0, cell * 0.7))
    body = [f'<rect class="plate" x="{margin:.1f}" y="{margin:.1f}" width="{side:.1f}" height="{side:.1f}"/>']
    for i, row in enumerate(matrix):
        total = sum(row)
        for j, count in enumerate(row):
            if not count:
                continue
            share = count / total
            told = f"{labels[i]} → {labels[j]}: {count} of {total} ({share:.1%})"
            kind = "right" if i == j else "wrong"
            x, y = margin + j * cell, margin + i * cell
            body.append(
                f'<rect class="{kind}" fill-opacity="{max(0.08, share):.2f}" x="{x:.1f}" y="{y:.1f}" '
                f'width="{cell:.2f}" height="{cell:.2f}"><title>{escape(told)}</title></rect>'
            )
            if numbered:
                ink = "on" if share > 0.55 else "cell"
                body.append(
                    _words(ink, x + cell / 2, y + cell / 2 + 4, "middle", str(count), min(11.0, cell * 0.34 + 3))
                )
    if named:
        for i, label in enumerate(labels):
            middle = margin + (i + 0.5) * cell
            body.append(_words("tick", margin - 5, middle + font / 3, "end", _short(label), font))
            turn = f' transform="rotate(-90 {middle + font / 3:.1f} {margin - 5:.1f})"'
            body.append(_words("tick", middle + font / 3, margin - 5, "start", _short(label), font, turn))
    return _svg(margin + side + 4, margin + side + 4, body, "confusion of truth and guess")


def whisker(
    value: float, interval: Sequence[float], axis: Axis, *, whole: float | None = None, flagged: bool = False
) -> str:
    """A dot with its interval on one row of a table; ``whole``: a vertical line to compare with."""
    width, height = 150, 18
    low, high = interval
    at = [6 + axis.place(v) * (width - 12) for v in (value, low, high)]
    kind = "bad" if flagged else "s0"
    body = [f'<line class="grid" x1="6" x2="{width - 6}" y1="9" y2="9"/>']
    if whole is not None:
        place = 6 + axis.place(whole) * (width - 12)
        body.append(f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="1" y2="17"/>')
    body.append(f'<line class="line {kind}" x1="{at[1]:.1f}" x2="{at[2]:.1f}" y1="9" y2="9"/>')
    body.append(f'<circle class="dot {kind}" cx="{at[0]:.1f}" cy="9" r="4"/>')
    return _svg(width, height, body, f"{value:.3f}, interval {low:.3f} to {high:.3f}", "whisker")


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], at most ``most``."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * power for step in (1, 2, 5, 10, 20) if span / (step * power) <= most - 1)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _frame(x: Axis, y: Axis) -> list[str]:
    """Grid, ticks and names of both axes."""
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for value, words in y.ticks or [(v, f"{v:g}") for v in (round(v, 10) for v in round_numbers(y.low, y.high))]:
        at = _y(y, value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_words("tick", _LEFT - 6, at + 4, "end", words))
    for value, words in x.ticks or [(v, f"{v:g}") for v in (round(v, 10) for v in round_numbers(x.low, x.high))]:
        at = _x(x, value)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(_words("tick", at, bottom + 16, "middle", words))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_words("tick", (_LEFT + right) / 2, _HEIGHT - 6, "middle", x.name))
    if y.name:
        turn = f' transform="rotate(-90 12 {(_TOP + bottom) / 2:.1f})"'
        parts.append(_words("tick", 12, (_TOP + bottom) / 2, "middle", y.name, 11, turn))
    return parts


def _legend(lines: Sequence[Line]) -> list[str]:
    """Names over the plot; one line alone needs none."""
    if len(lines) < 2:
        return []
    parts, at = [], float(_LEFT)
    for i, line in enumerate(lines):
        parts.append(f'<line class="line s{i}" x1="{at:.1f}" x2="{at + 14:.1f}" y1="12" y2="12"/>')
        parts.append(_words("legend", at + 18, 16, "start", line.name))
        at += 30 + 6.4 * _wide(line.name)
    return parts


def _words(kind: str, x: float, y: float, anchor: str, words: str, size: float = 11, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size:.1f}"'
    return f'<text class="{kind}" {place}{more}>{escape(words)}</text>'


def _dot(kind: str, x: float, y: float, told: str) -> str:
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{escape(told)}</title></circle>'


def _svg(width: float, height: float, body: Sequence[str], title: str, kind: str = "chart") -> str:
    head = f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(title)}"'
    return f'{head} style="max-width:{width:.0f}px">{"".join(body)}</svg>'


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.place(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(value) * (_HEIGHT - _TOP - _BOTTOM)


def _short(label: str) -> str:
    return label if len(label) <= 16 else f"{label[:15]}…"


def _wide(words: str) -> float:
    """Width in Latin characters; Chinese ones count double."""
    return sum(1.8 if ord(c) > 0x2E7F else 1 for c in words)
