"""A head whose rows are split over several processes: each computes its slice, small exchanges join them.

Each process calls with the same tokens and its own rows (:mod:`.agreement` checks that all do, :mod:`.dtensors` reads
them off a DTensor). What is exchanged are a few numbers a token (:mod:`.join`): :mod:`.split_loss` for the loss,
:mod:`.fused_slice` for that of the fused kernels, :mod:`kernel.statistics.split` for the statistics. A process that
fails takes part in every exchange before it raises: the others learn of it instead of waiting (:mod:`.exchange`).
"""

from .agreement import check_group, propose
from .dtensors import local_parts
from .exchange import gather
from .fused_slice import loss as fused_loss
from .split_loss import loss

__all__ = ["check_group", "fused_loss", "gather", "local_parts", "loss", "propose"]
