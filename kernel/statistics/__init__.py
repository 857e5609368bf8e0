"""Statistics of a head's softmax without its logits, in blocks or in fused Triton kernels.

:mod:`.api` checks the arguments, :mod:`.fields` defines the result, :mod:`.chunked` runs on any device, and
:mod:`.fused` launches the Triton kernels :mod:`.sweep` and :mod:`.join`, which share the pieces in :mod:`.tile`.
Importing this package needs no Triton.
"""

from .api import head_statistics
from .fields import HeadStatistics

__all__ = ["HeadStatistics", "head_statistics"]
