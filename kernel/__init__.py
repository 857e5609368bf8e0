"""Losses and statistics of a linear language-model head that never hold the N x V logits.

>>> import kernel
>>> sorted(kernel.__all__)
['HeadStatistics', 'LinearCrossEntropy', 'head_statistics', 'linear_cross_entropy']
"""

from .api import LinearCrossEntropy, linear_cross_entropy
from .statistics import HeadStatistics, head_statistics

__all__ = ["HeadStatistics", "LinearCrossEntropy", "head_statistics", "linear_cross_entropy"]
