"""Statistics of a head's softmax without its logits, in blocks or in fused Triton kernels.

``api`` checks the arguments, ``fields`` defines the result, ``chunked`` runs on any device, and ``fused`` launches the
Triton kernels ``sweep`` and ``join``, which share the pieces in ``tile``.
Importing this package needs no Triton.
"""

from .api import head_statistics
from .fields import HeadStatistics

__all__ = ["HeadStatistics", "head_statistics"]
