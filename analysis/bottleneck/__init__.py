"""Softmax-bottleneck models: free context features under one linear head, trained to convergence on a known teacher.

The smallest model in which hidden size, vocabulary, norms, temperature and softcap meet label smoothing. Nothing limits
the features but the width D and the norms, so that what a trained head cannot do is the fault of these alone.
"""

from ._config import FitConfig
from ._head import SoftmaxBottleneck
from ._measures import measure
from ._training import Fitted, course, fit, train
from ._unseen import MERGED_SHARE, merging_is_exact

__all__ = [
    "MERGED_SHARE",
    "FitConfig",
    "Fitted",
    "SoftmaxBottleneck",
    "course",
    "fit",
    "measure",
    "merging_is_exact",
    "train",
]
