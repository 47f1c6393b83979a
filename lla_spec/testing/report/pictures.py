"""The pictures of a page as inline SVG, coloured by its style sheet: distributions of error / bound, and heat maps."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

LOWEST, HIGHEST, PER_DECADE = -4, 2, 4  # decades of error / bound that are drawn; beyond them there is one bin each
BINS = (HIGHEST - LOWEST) * PER_DECADE + 2
LEFT, BIN, HEIGHT, GAP, APART = 44, 15, 26, 12, 9  # in the units of the picture; the outer bins stand a little apart
MOST_PX, CELL_PX = 240, 36  # a heat map's longer side, and one cell's where there are few; a strip is no thinner
TICKS = {-3: "0.001", -2: "0.01", -1: "0.1", 0: "1", 1: "10"}
STEPS = (
    0.125,
    0.25,
    0.5,
    1.0,
    2.0,
    10.0,
    100.0,
    math.inf,
)  # a cell's colour is that of the first step that it reaches not


def distribution(ratios: Mapping[str, Sequence[float]]) -> str:
    """A histogram of error / bound for each column ("bf16"), on one logarithmic axis; the bound is a line at 1."""
    width, height = _left(BINS - 1) + BIN + 44, len(ratios) * (HEIGHT + GAP) + 22
    bound = _left(1 - LOWEST * PER_DECADE)
    parts = [f'<line class="bound" x1="{bound}" x2="{bound}" y1="4" y2="{height - 18}"/>']
    for place, (label, values) in enumerate(ratios.items()):
        base = (place + 1) * (HEIGHT + GAP)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - 44}" y1="{base}" y2="{base}"/>')
        parts.append(f'<text x="0" y="{base - 3}">{html.escape(label)}</text>')
        parts.append(f'<text class="count" x="{width}" y="{base - 3}" text-anchor="end">{len(values)}</text>')
        parts += _bars(values, base)
    parts += [_tick(_left(1 + (power - LOWEST) * PER_DECADE), height, words) for power, words in TICKS.items()]
    parts += [_tick(_left(place) + BIN / 2, height, words) for place, words in ((0, "0"), (BINS - 1, "∞"))]
    told = "; ".join(
        f"{label}: {len(values)} cases, worst {max(values, default=0):.3g}" for label, values in ratios.items()
    )
    return (
        f'<svg class="distribution" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="distribution of error / bound. {html.escape(told)}">{"".join(parts)}</svg>'
    )


def _bars(values: Sequence[float], base: int) -> list[str]:
    """A path for what is within the bound, and one for what is not."""
    counts = [0] * BINS
    for value in values:
        counts[_bin(value)] += 1
    most = max([*counts, 1])
    made = {"in": "", "over": ""}
    for place, count in enumerate(counts):
        if count:
            tall = max(round(HEIGHT * count / most, 1), 2)
            side = "over" if place > -LOWEST * PER_DECADE else "in"
            made[side] += f"M{_left(place) + 1} {base}v-{tall:g}h{BIN - 2}v{tall:g}z"
    return [f'<path class="{side}" d="{path}"/>' for side, path in made.items() if path]


def _bin(ratio: float) -> int:
    """The bin of a ratio: 0 for what is below every decade; 1 itself is within the bound."""
    if ratio <= 10.0**LOWEST:
        return 0
    if ratio > 10.0**HIGHEST:
        return BINS - 1
    return math.ceil((math.log10(ratio) - LOWEST) * PER_DECADE)


def _left(place: int) -> int:
    """Where a bin begins."""
    return LEFT + place * BIN + (place > 0) * APART + (place > BINS - 2) * APART


def _tick(x: float, height: int, words: str) -> str:
    return f'<text class="tick" x="{x:g}" y="{height - 4}" text-anchor="middle">{words}</text>'


def heat_map(heat: Mapping[str, Any]) -> str:
    """error / bound of a matrix, a cell an entry or a block: pale within the bound, the colours of a fire above it."""
    rows = [[float(value) for value in row] for row in heat["values"]]
    paths = [""] * (len(STEPS) + 1)
    for y, row in enumerate(rows):
        start = 0
        for x in range(1, len(row) + 1):  # neighbours of one shade are one rectangle
            if x == len(row) or step(row[x]) != step(row[start]):
                paths[step(row[start])] += f"M{start} {y}h{x - start}v1h-{x - start}z"
                start = x
    drawn = "".join(f'<path class="h{place}" d="{path}"/>' for place, path in enumerate(paths) if path)
    wide, tall = len(rows[0]), len(rows)
    rows_of, columns_of = map(int, heat["shape"])
    over = sum(value > 1 for row in rows for value in row)
    side = min(MOST_PX / max(wide, tall), CELL_PX)
    size = f"width:{max(side * wide, CELL_PX):.0f}px;height:{max(side * tall, CELL_PX):.0f}px"
    told = f"error / bound over {rows_of} × {columns_of} entries; over the bound in {over} cells"
    return (
        f'<svg class="heat" viewBox="0 0 {wide} {tall}" preserveAspectRatio="none" style="{size}" '
        f'shape-rendering="crispEdges" role="img" aria-label="{told}">{drawn}</svg>'
    )


def step(ratio: float) -> int:
    """The shade of a ratio: 0 … 3 within the bound, 4 … 8 over it, the last for what is not finite.

    >>> [step(ratio) for ratio in (0.0, 1.0, 1.5, 50.0, math.inf)]
    [0, 3, 4, 6, 8]
    """
    if ratio <= 1:
        return next(place for place, edge in enumerate(STEPS) if ratio <= edge)
    return next((place for place, edge in enumerate(STEPS) if ratio < edge), len(STEPS))
