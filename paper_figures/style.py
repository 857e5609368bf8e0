"""Sizes, type and colours that all figures share; nothing here touches matplotlib's global state."""

from __future__ import annotations

from typing import Any

__all__ = ["COLUMN_WIDTH", "HIDDEN_SIZE_COLOURS", "RC", "TEXT_WIDTH", "THEORY_COLOUR"]

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
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,  # text stays text
    "savefig.dpi": 300,
    "svg.hashsalt": "confidence-ceiling",
}

# From light to dark, so that the order survives in grey; blue to yellow (cividis), safe for the colour-blind.
HIDDEN_SIZE_COLOURS = ("#dfca4a", "#a69d75", "#666970", "#00224e")
THEORY_COLOUR = "#c44e00"
