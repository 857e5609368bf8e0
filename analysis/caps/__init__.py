"""Upper bounds on the confidence of a softmax head, and what such a head attains.

Notation. Logits ``z = f(W h) / T`` with rows ``w_k`` of ``W`` (V, D), ``||w_k|| <= B``, ``||h|| <= R``; the *norm
product* ``m = R B`` is in logit units, before softcap and temperature; the softcap is ``f(x) = c tanh(x / c)``. A
bound that takes no temperature holds at another temperature with ``m / T`` in the place of ``m``. Confidences and
*gaps* are two scales for one thing (:func:`gap_to_confidence`). Nothing here imports torch.
"""

from ._gaps import confidence_to_gap, gap_to_confidence, max_gap
from ._norms import entropy_floor, logit_norm_cap, simplex_cap, single_token_cap

__all__ = [
    "confidence_to_gap",
    "entropy_floor",
    "gap_to_confidence",
    "logit_norm_cap",
    "max_gap",
    "simplex_cap",
    "single_token_cap",
]
