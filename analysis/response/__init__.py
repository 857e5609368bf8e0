"""How far label smoothing will lower a head's confidence, from the head trained without it: condition and response.

:func:`frozen_head_response` predicts the fall in confidence of every context, for any targets, by moving the hidden
states with the head frozen; :func:`stationarity` says whether there is any fall at first order, :func:`susceptibility`
how large it is per unit of smoothing. :func:`clipped_fall`, :func:`rational_fall` and :func:`exceeds_smoothed_target`
are the rivals that need two numbers. Sections C5 and C6 of the theory.

    plain = bottleneck.train(config)  # without smoothing
    response = frozen_head_response(plain.head.weight(), plain.head.hidden(), plain.training, [0.05, 0.1])
    response.fall, response.converged
"""

from ._first_order import Stationarity, Susceptibility, stationarity, susceptibility
from ._frozen import FrozenHeadResponse, frozen_head_response
from ._scalars import clipped_fall, exceeds_smoothed_target, rational_fall

__all__ = [
    "FrozenHeadResponse",
    "Stationarity",
    "Susceptibility",
    "clipped_fall",
    "exceeds_smoothed_target",
    "frozen_head_response",
    "rational_fall",
    "stationarity",
    "susceptibility",
]
