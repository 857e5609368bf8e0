"""Sizes, type and colours that all figures share; nothing here touches matplotlib's global state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["COLUMN_WIDTH", "HIDDEN_SIZE_COLOURS", "RC", "TEXT_WIDTH", "THEORY_COLOUR", "Look", "looks", "ramp"]

COLUMN_WIDTH, TEXT_WIDTH = 3.25, 6.75  # inches, of an ICML page

# For matplotlib.rc_context. STIX stands in for the Times of the page and comes with matplotlib, so that every machine
# draws the same bytes.
RC: Any = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 200,
    "svg.hashsalt": "confidence-ceiling",
}

# From light to dark, so that the order survives in grey; blue to yellow (cividis), safe for the colour-blind.
HIDDEN_SIZE_COLOURS = ("#dfca4a", "#a69d75", "#666970", "#00224e")
THEORY_COLOUR = "#c44e00"
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1.2, 1, 1.2)), (0, (2, 1)), (0, (8, 2)))


class Look(NamedTuple):
    """How one value of a variable is drawn: told by colour, marker and dashes each, so that grey is enough."""

    colour: str
    marker: str
    dashes: Any


def ramp(count: int) -> list[str]:
    """``count`` colours from light to dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    shades = LinearSegmentedColormap.from_list("hidden", HIDDEN_SIZE_COLOURS)
    return [to_hex(shades(i / (count - 1) if count > 1 else 1.0)) for i in range(count)]


def looks(values: Iterable[Any]) -> dict[Any, Look]:
    """A look for each value, light to dark in the order given."""
    listed = list(values)
    colours = ramp(len(listed))
    return {
        value: Look(colours[i], _MARKERS[i % len(_MARKERS)], _DASHES[i % len(_DASHES)])
        for i, value in enumerate(listed)
    }
