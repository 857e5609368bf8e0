"""The tightest proven cap for a head, with its name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import check_flag, interval, one_index, require_broadcast, softcap_or_inf, whole
from ._aligned import aligned_gap
from ._gaps import gap_to_confidence
from ._margin import packing_gap
from ._rank import rank_gap
from ._softcap import softcap_gap


class ConfidenceCap(NamedTuple):
    """A cap on the confidence in every token, the same as a gap in nats, and the bound it comes from."""

    confidence: NDArray[np.float64]
    gap: NDArray[np.float64]
    name: NDArray[np.str_]


@one_index
def confidence_cap(
    norm_product: ArrayLike,
    vocab_size: ArrayLike,
    hidden_size: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    softcap: ArrayLike | None = None,
    aligned: bool = False,
) -> ConfidenceCap:
    r"""Return the tightest **proven** cap on the confidence that a head can give to every token in its own context.

    ==================== ===================================== ==========================================
    name                 bound                                 assumption
    ==================== ===================================== ==========================================
    ``simplex``          :func:`simplex_cap`                   none; the name where D >= V - 1
    ``rank``             :func:`rank_cap`                      none; the name where D < V - 1
    ``packing``          :func:`packing_cap`                   none; wins where D < log V
    ``softcap``          :func:`softcap_gap`                   a softcap
    ``kernel``           :func:`aligned_cap`                   ``aligned``: h_k along w_k, equal norms
    ``linear_program``   the same, ``linear_program``          the same
    ==================== ===================================== ==========================================

    Under a softcap the bounds for linear logits still hold in the form max(bound, 1/2): where every target is the
    argmax of its context, the cap shrinks every difference z_y - z_k; where one is not, its probability is at most
    1/2.

    Args:
        norm_product: m = max ||h|| max ||w_k|| >= 0, in logit units before cap and temperature.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.
        temperature: Temperature T > 0.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.
        aligned: Add the bounds that hold for aligned heads only.

    Returns:
        The confidence, the gap and the name of the bound, each with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range, the shapes do not broadcast, or ``aligned`` meets a softcap.

    Example:
        >>> cap = confidence_cap(12.0, 32000, [64, 32000])
        >>> cap.confidence.round(3).tolist(), cap.name.tolist()
        ([0.811, 0.836], ['rank', 'simplex'])
        >>> confidence_cap(12.0, 32000, 64, softcap=5.0).name.item()
        'softcap'
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    d, t = whole("hidden_size", hidden_size, 1), interval("temperature", temperature, 0, open_low=True)
    c = softcap_or_inf(softcap)
    shape = require_broadcast(norm_product=m, vocab_size=v, hidden_size=d, temperature=t, softcap=c)
    if check_flag("aligned", aligned) and np.any(np.isfinite(c)):
        raise ValueError("aligned=True must come without a softcap: the aligned caps hold for linear logits only.")

    linear = {"simplex": rank_gap(m / t, v, d), "packing": packing_gap(m / t, v, d)}
    if aligned:
        for method in ("kernel", "linear_program"):
            linear[method] = aligned_gap(m / t, v, d, method)
    half = np.where(np.isinf(c), -np.inf, np.log(v - 1))  # the gap of p = 1/2
    table = {name: np.maximum(gap, half) for name, gap in linear.items()}
    table["softcap"] = np.where(np.isinf(c), np.inf, softcap_gap(m, v, softcap, temperature=t))

    gaps = np.stack([np.broadcast_to(gap, shape) for gap in table.values()])
    best = gaps.argmin(axis=0)
    name = np.array(list(table))[best]
    name = np.where((name == "simplex") & (d < v - 1), "rank", name)
    gap = np.take_along_axis(gaps, best[None], axis=0)[0]
    return ConfidenceCap(gap_to_confidence(gap, v), gap[()], name[()])
