"""Audit of a real head: SmolLM2-135M-Instruct on Python's documentation and library, calibration, caps and smoothing.

Caption. *(a)* Accuracy against confidence of the most probable next token, in 15 bins with Wilson intervals; grey:
where a calibrated model of these confidences would lie; dotted: the confidence that smoothing of .1 asks for; along
the bottom: shares of the tokens. *(b)* Confidence gaps log((V - 1) p / (1 - p)) of the tokens (line: all, bar: middle
half, mark: median), the gaps that smoothing asks for (band: all three), and every proven bound on a gap of this head:
norms are no ceiling here, by a factor of ten. *(c)* Activity index: below 1 smoothing makes logits smaller, below 0
unsmoothed training on this text would as well. *(d)* Confidence minus accuracy in fifths of the tokens, by entropy of
the prediction (lowest first) and by frequency of the predicted token in the other documents (rarest first). Bars of (c)
and (d): 95 % bootstrap intervals over documents. The first token of each document does not count: it is predicted from
the start mark alone. The model was tuned for instructions and its weights are dequantised from 4 bits: its numbers are
not those of the original. Table audit_smollm2.
"""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from analysis.audit import draw_audit

from .drawing import LABEL_SIZE, check, panel
from .style import RC, TEXT_WIDTH

__all__ = ["COLUMNS", "OPTIONAL", "TABLES", "make", "prepare"]

TABLES, OPTIONAL = ("audit_smollm2",), ()
COLUMNS = ["part", "name", "group", "value", "low", "high", "text"]
_PARTS = ("source", "model", "reliability", "gap", "cap", "smoothing", "entropy", "frequency")
_TITLES = ("reliability", "gaps and their bounds", "does smoothing act?", "over-confidence")


def prepare(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The parts of the audit that are drawn.

    Returns:
        ``COLUMNS``.
    """
    table = tables["audit_smollm2"]
    return table.loc[table["part"].isin(_PARTS), COLUMNS].reset_index(drop=True)


def make(table: pd.DataFrame, *, preset: str = "") -> Figure:
    """Reliability, gaps under their caps, activity index and over-confidence by group; see the caption above.

    Redraw: ``python -m paper_figures --only audit``.
    """
    check(table, COLUMNS)
    said = table.loc[table["part"] == "source"].set_index("name")["text"]
    tokens = table.loc[(table["part"] == "model") & (table["name"] == "tokens"), "value"].iloc[0]
    with mpl.rc_context({**RC, "legend.fontsize": LABEL_SIZE, "ytick.labelsize": LABEL_SIZE}):
        fig = Figure(figsize=(TEXT_WIDTH, 2.3))
        places = ((0.06, 0.18), (0.365, 0.145), (0.6, 0.125), (0.815, 0.175))
        axes = [fig.add_axes((x, 0.245, width, 0.65)) for x, width in places]
        draw_audit(table, axes)
        for letter, ax, title in zip("abcd", axes, _TITLES, strict=True):
            panel(ax, letter, title, offset=-0.75 if letter == "b" else 0.0)
        origin = f"{said['model']} ({said['quantisation']}), {tokens:,.0f} tokens of the {said['text']}"
        fig.text(0.995, 0.01, origin, ha="right", va="bottom", fontsize=6, color="0.45")
    return fig
