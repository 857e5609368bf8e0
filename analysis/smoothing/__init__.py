"""What label smoothing asks of a head, and whether a head of given norms can feel it.

Convention, everywhere in this project that of :func:`torch.nn.functional.cross_entropy`: with ``label_smoothing`` b the
target of a token y is (1 - b) onehot(y) + b / V, so y itself keeps 1 - b + b / V.
"""

from ._index import activity_index, predicted_activity
from ._low_rank import LowRankHead, MatchedFeatures, match_moments, weighted_svd_head
from ._optimum import (
    effectiveness_ratio,
    loss_floor,
    optimal_confidence,
    optimal_gap,
    optimal_gap_under_cap,
    restoring_temperature,
)
from ._penalty import SmoothingPenalty, smoothing_penalty
from ._targets import dirichlet_concentration, smooth, smoothed_calibration_error, unsmooth

__all__ = [
    "LowRankHead",
    "MatchedFeatures",
    "SmoothingPenalty",
    "activity_index",
    "dirichlet_concentration",
    "effectiveness_ratio",
    "loss_floor",
    "match_moments",
    "optimal_confidence",
    "optimal_gap",
    "optimal_gap_under_cap",
    "predicted_activity",
    "restoring_temperature",
    "smooth",
    "smoothed_calibration_error",
    "smoothing_penalty",
    "unsmooth",
    "weighted_svd_head",
]
