"""How figures look: one style, one colour per setting, and SVG text whose ink follows the page, light or dark."""

from __future__ import annotations

import io
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's, safe for the colour-blind; their black and yellow vanish on one of the two backgrounds and are left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a8a8a")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)))
"""Lines of settings that share a colour."""
# Stand-ins, replaced by the page's own colours once drawn.
QUIET = "#010203"
_INK, _LINE = "#010204", "#010205"
_OF_THE_PAGE = {QUIET: "var(--quiet)", _INK: "currentColor", _LINE: "var(--line)"}
_OF_A_FILE = {"var(--quiet)": "#5f6368", "currentColor": "#1b1b1b", "var(--line)": "#d9d9d9"}
STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a prior may be called anything
    "svg.hashsalt": "priorlab",
}


def colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def dash(index: int) -> Any:
    return DASHES[index // len(COLOURS) % len(DASHES)]


def to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "priorlab"})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # inline SVG has no XML prologue
    for stand_in, real in _OF_THE_PAGE.items():
        text = text.replace(stand_in, real)
    return text


def standalone(svg: str) -> str:
    """The same figure as a separate file: on white, in plain colours that every SVG program knows."""
    for of_the_page, plain in _OF_A_FILE.items():
        svg = svg.replace(of_the_page, plain)
    return svg.replace("<svg ", '<svg style="background: #fff" ', 1)
