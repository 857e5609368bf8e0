"""Command that tests predictors of the transition below full rank: ``python -m analysis.transition_table [FILE]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from . import caps, smoothing
from .lab.computed import table_command
from .norm_ball import fit_norm_ball

__all__ = ["rows"]

LABEL_SMOOTHING = 0.1
SHAPES = tuple((v, d) for v in (16, 32, 64) for d in (2, 3, 4, 6))
# norm product over the gap that smoothing asks for
RATIOS = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0, 2.6, 3.5, 5.0)


def rows(shapes: Sequence[tuple[int, int]] = SHAPES, ratios: Sequence[float] = RATIOS) -> Iterator[dict[str, float]]:
    """Train heads without and with smoothing, and yield them beside every predictor.

    Args:
        shapes: Pairs (vocab_size, hidden_size).
        ratios: Norm products in units of the gap that smoothing asks for.

    Yields:
        One row a head: ``effectiveness_ratio`` (rho), ``rank_ratio`` (the same with the rank-aware bound),
        ``activity_index`` measured on the plain head, ``predicted_activity`` from the shape alone, and the mean
        confidence of both heads. rho and the ratio say "acts" above 1, the indices below 1.
    """
    for v, d in shapes:
        asked = float(smoothing.optimal_gap(LABEL_SMOOTHING, v))
        m = [ratio * asked for ratio in ratios]
        plain = fit_norm_ball(v, d, m, restarts=2, steps=500)
        smoothed = fit_norm_ball(v, d, m, label_smoothing=LABEL_SMOOTHING, restarts=2, steps=500)
        index = smoothing.activity_index(
            plain.entropy, plain.cross_entropy, plain.uniform_cross_entropy, LABEL_SMOOTHING
        )
        rho = smoothing.effectiveness_ratio(m, v, LABEL_SMOOTHING)
        predicted = smoothing.predicted_activity(m, v, d, LABEL_SMOOTHING)
        rank = caps.rank_gap(m, v, d) / asked
        for i, norm_product in enumerate(m):
            yield {
                "vocab_size": v,
                "hidden_size": d,
                "label_smoothing": LABEL_SMOOTHING,
                "norm_product": norm_product,
                "effectiveness_ratio": float(rho[i]),
                "rank_ratio": float(rank[i]),
                "activity_index": float(index[i]),
                "predicted_activity": float(predicted[i]),
                "confidence_plain": float(plain.confidence[i]),
                "confidence_smoothed": float(smoothed.confidence[i]),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and beside it how it was made; returns the exit status."""
    return table_command(
        arguments,
        "transition",
        "Predictors below full rank.",
        lambda: rows(),
        config={"label_smoothing": LABEL_SMOOTHING, "shapes": SHAPES, "ratios": RATIOS},
        digits=6,
        total=len(SHAPES) * len(RATIOS),
        seeds=[0],
    )


if __name__ == "__main__":
    sys.exit(main())
