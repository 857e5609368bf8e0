"""Losses and statistics of a linear language-model head that never hold the N x V logits.

>>> import kernel
>>> sorted(kernel.__all__)
['HeadStatistics', 'LinearCrossEntropy', 'TokenStatistics', 'head_statistics', 'linear_cross_entropy']
"""

from .api import linear_cross_entropy
from .module import LinearCrossEntropy
from .statistics import HeadStatistics, head_statistics
from .token_statistics import TokenStatistics

__all__ = ["HeadStatistics", "LinearCrossEntropy", "TokenStatistics", "head_statistics", "linear_cross_entropy"]
