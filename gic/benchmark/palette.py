"""Colours and markers of curves, the same in the figures and in the report.

Codecs under test are in colour, their first two places kept for r = 0 and r = 1; the others are grey. Published points
have colours of their own. Every colour can be seen on white and on the report's dark paper, and the strong ones by
colour-blind readers (Okabe and Ito).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from gic.benchmark.results import Results

STRONG = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREYS = ("#6b727c", "#8a919b", "#74859a", "#9a9fa6")
PUBLISHED = ("#7a6fc0", "#2f9058", "#b8477f", "#3a9a90", "#cc6677", "#8c8c35", "#aa55aa", "#4a9cc8", "#a8904a")
SHAPES = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v"}
"""Names of markers in Plotly, and their letters in matplotlib."""
KNOWN = ("jpeg", "webp", "avif", "jpeg-xl", "heic", "jpeg-2000")
"""Codecs that look the same in every run."""


class Look(NamedTuple):
    """How a curve is drawn.

    Attributes:
        colour: As #rrggbb.
        shape: One of :data:`SHAPES`.
    """

    colour: str
    shape: str


def looks(results: Results) -> dict[str, Look]:
    """Look of every curve, by name: it depends on the codec and r, not on the other curves as far as places last."""
    tested = [curve for curve in results.curves if results.under_test(curve)]
    codecs = list(dict.fromkeys(curve.codec for curve in tested))
    wanted = {}
    for curve in tested:
        place = {"r=0": 0, "r=1": 1}.get(curve.decoding)
        wanted[curve.name] = None if place is None else 2 * codecs.index(curve.codec) + place
    found = {name: _nth(place, STRONG) for name, place in _places(wanted).items()}
    others = {
        curve.name: KNOWN.index(curve.codec) if curve.codec in KNOWN else None
        for curve in results.curves
        if curve.name not in found
    }
    shapes = list(SHAPES)[1:]  # circles are for the codecs under test
    for name, place in _places(others, len(KNOWN)).items():
        found[name] = Look(GREYS[place % len(GREYS)], shapes[(place + place // len(GREYS)) % len(shapes)])
    return found


def published_looks(names: Sequence[str]) -> dict[str, Look]:
    """Look of every published curve, by name."""
    shapes = list(SHAPES)
    return {name: Look(PUBLISHED[i % len(PUBLISHED)], shapes[i % len(shapes)]) for i, name in enumerate(names)}


def _nth(place: int, colours: Sequence[str]) -> Look:
    """The colours in turn; another marker for each round."""
    shapes = list(SHAPES)
    return Look(colours[place % len(colours)], shapes[place // len(colours) % len(shapes)])


def _places(wanted: Mapping[str, int | None], first: int = 0) -> dict[str, int]:
    """Places of names: the wanted ones, and for the others the first free ones from ``first`` on."""
    taken = set(wanted.values())
    free: Iterator[int] = (place for place in count(first) if place not in taken)
    return {name: next(free) if place is None else place for name, place in wanted.items()}
