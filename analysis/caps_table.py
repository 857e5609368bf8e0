"""Command that tabulates every cap for public head shapes: ``python -m analysis.caps_table [FILE]``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from . import caps, random_energy, smoothing
from .head_shapes import HEAD_SHAPES, HeadShape
from .lab.computed import table_command

__all__ = ["NORM_PRODUCTS", "needed_norm_product", "rows"]

NORM_PRODUCTS = (5.0, 10.0, 20.0, 50.0)
LABEL_SMOOTHING = 0.1


def needed_norm_product(gap_at: Callable[[float], float], gap: float) -> float:
    """Find the least norm product m with ``gap_at(m) >= gap``, for a rising function; inf where 1e6 is not enough.

    Args:
        gap_at: Gap in nats that a norm product allows.
        gap: Gap in nats that is wanted.

    Returns:
        m to a relative 1e-9.

    Example:
        >>> round(needed_norm_product(lambda m: 2 * m, 10.0), 6)
        5.0
    """
    low, high = 0.0, 1.0
    while gap_at(high) < gap:
        low, high = high, 2 * high
        if high > 1e6:
            return float("inf")
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gap_at(middle) < gap else (low, middle)
    return high


def _shape_columns(shape: HeadShape) -> dict[str, object]:
    """What does not depend on the norm product."""
    v, d = shape.vocab_size, shape.hidden_size
    target = float(smoothing.optimal_gap(LABEL_SMOOTHING, v))
    margin = caps.margin_bounds(v, d)

    def allowed(m: float) -> float:
        return float(caps.confidence_cap(m, v, d, softcap=shape.softcap).gap)

    def reached(m: float) -> float:
        return float(caps.confidence_to_gap(caps.random_code_confidence(m, v, d, softcap=shape.softcap), v))

    columns: dict[str, object] = shape._asdict() | {
        "softcap": "" if shape.softcap is None else shape.softcap,
        "label_smoothing": LABEL_SMOOTHING,
        "optimal_gap": target,
        "optimal_confidence": float(smoothing.optimal_confidence(LABEL_SMOOTHING, v)),
        "margin_lower": float(margin.lower),
        "margin_upper": float(margin.upper),
        "sqrt_hidden_over_log_vocab": np.sqrt(d) / np.log(v),
        "hidden_over_sqrt_vocab": d / np.sqrt(v),
    }
    gaps = {"50": float(caps.confidence_to_gap(0.5, v)), "90": float(caps.confidence_to_gap(0.9, v)), "target": target}
    for name, gap in gaps.items():
        columns[f"needed_m_{name}"] = needed_norm_product(allowed, gap)  # no head of less norm reaches it
        columns[f"enough_m_{name}"] = needed_norm_product(reached, gap)  # random rows reach it
    return columns


def rows(shapes: tuple[HeadShape, ...] = HEAD_SHAPES) -> Iterator[dict[str, object]]:
    """Yield one row for each shape and norm product.

    Args:
        shapes: The heads.

    Yields:
        Column name -> value. ``single_token`` to ``softcap`` are caps on the confidence, of which ``confidence_cap``
        is the least that is proven for every head, by the bound ``confidence_cap_name``; ``aligned_*`` hold for
        aligned heads only; ``random_code`` (geometric mean) and ``planted`` (leading order) are confidences that
        random rows reach, without a softcap. ``needed_m_*`` and ``enough_m_*`` bracket the norm product that
        confidence .5, .9 and the smoothed optimum take.
    """
    for shape in shapes:
        v, d = shape.vocab_size, shape.hidden_size
        fixed = _shape_columns(shape)
        for m in NORM_PRODUCTS:
            tightest = caps.confidence_cap(m, v, d, softcap=shape.softcap)
            yield {
                **fixed,
                "norm_product": m,
                "single_token": float(caps.single_token_cap(m, v)),
                "simplex": float(caps.simplex_cap(m, v)),
                "rank": float(caps.rank_cap(m, v, d)),
                "packing": float(caps.packing_cap(m, v, d)),
                "softcap_bound": float(caps.gap_to_confidence(caps.softcap_gap(m, v, shape.softcap), v)),
                "confidence_cap": float(tightest.confidence),
                "confidence_cap_name": str(tightest.name),
                "aligned_kernel": float(caps.aligned_cap(m, v, d)),
                "aligned_linear_program": float(caps.aligned_cap(m, v, d, method="linear_program")),
                "random_code": float(caps.random_code_confidence(m, v, d, softcap=shape.softcap)),
                "planted": float(random_energy.planted_confidence(m, v, d)),
                "effectiveness_ratio": float(
                    smoothing.effectiveness_ratio(m, v, LABEL_SMOOTHING, softcap=shape.softcap)
                ),
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, and beside it how it was made; returns the exit status."""
    return table_command(
        arguments,
        "caps",
        "Caps of public head shapes.",
        lambda: rows(),
        config={"label_smoothing": LABEL_SMOOTHING, "norm_products": NORM_PRODUCTS, "shapes": len(HEAD_SHAPES)},
        digits=7,
        total=len(HEAD_SHAPES) * len(NORM_PRODUCTS),
        note="no seeds: nothing is random",
    )


if __name__ == "__main__":
    sys.exit(main())
