"""Upper bounds on the confidence of a softmax head, and what such a head attains.

Notation. Logits ``z = f(W h) / T`` with rows ``w_k`` of ``W`` (V, D), ``||w_k|| <= B``, ``||h|| <= R``; the *norm
product* ``m = R B`` is in logit units, before softcap and temperature; the softcap is ``f(x) = c tanh(x / c)``. A bound
that takes no temperature holds at another temperature with ``m / T`` in the place of ``m``. Confidences and *gaps* are
two scales for one thing (:func:`gap_to_confidence`). Nothing here imports torch.
"""

from ._aligned import aligned_cap, programme_gap, random_code_confidence
from ._gaps import confidence_to_gap, gap_to_confidence, max_gap
from ._margin import MarginBounds, margin_bounds, packing_cap, packing_gap
from ._norms import entropy_floor, logit_norm_cap, simplex_cap, single_token_cap
from ._rank import frobenius_cap, frobenius_gap, rank_cap, rank_gap, spectral_cap, spectral_gap
from ._search import attained_gap, best_confidence
from ._softcap import softcap_gap
from ._tightest import ConfidenceCap, confidence_cap

__all__ = [
    "ConfidenceCap",
    "MarginBounds",
    "aligned_cap",
    "attained_gap",
    "best_confidence",
    "confidence_cap",
    "confidence_to_gap",
    "entropy_floor",
    "frobenius_cap",
    "frobenius_gap",
    "gap_to_confidence",
    "logit_norm_cap",
    "margin_bounds",
    "max_gap",
    "packing_cap",
    "packing_gap",
    "programme_gap",
    "random_code_confidence",
    "rank_cap",
    "rank_gap",
    "simplex_cap",
    "single_token_cap",
    "softcap_gap",
    "spectral_cap",
    "spectral_gap",
]
