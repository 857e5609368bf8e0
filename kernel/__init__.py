"""Losses and statistics of a linear language-model head that never hold the N x V logits.

>>> import kernel
>>> sorted(kernel.__all__)
['LinearCrossEntropy', 'linear_cross_entropy']
"""

from .api import LinearCrossEntropy, linear_cross_entropy

__all__ = ["LinearCrossEntropy", "linear_cross_entropy"]
