"""Losses and statistics of a linear language-model head that never hold the N x V logits.

>>> import kernel
>>> sorted(kernel.__all__)  # doctest: +NORMALIZE_WHITESPACE
['GradientTolerance', 'HeadStatistics', 'LinearCrossEntropy', 'TokenStatistics', 'VocabularyOrder', 'head_statistics',
 'linear_cross_entropy', 'mean_probabilities', 'sort_vocabulary']
"""

from .api import linear_cross_entropy
from .gradient_tolerance import GradientTolerance
from .module import LinearCrossEntropy
from .statistics import HeadStatistics, head_statistics
from .token_statistics import TokenStatistics
from .vocabulary_order import VocabularyOrder, mean_probabilities, sort_vocabulary

__all__ = [
    "GradientTolerance",
    "HeadStatistics",
    "LinearCrossEntropy",
    "TokenStatistics",
    "VocabularyOrder",
    "head_statistics",
    "linear_cross_entropy",
    "mean_probabilities",
    "sort_vocabulary",
]
