"""Golden-section search over many unimodal functions at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_STEPS = 60  # 0.618^60 = 3e-13 of the interval; the error of the minimum is quadratic in it
_GOLDEN = (np.sqrt(5.0) - 1.0) / 2.0


def unimodal_minimum(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]], shape: tuple[int, ...]
) -> NDArray[np.float64]:
    """Minimum over x in [0, 1] of ``function(x)``, elementwise for arrays of ``shape``, ends included.

    The function must be unimodal in each element (every caller says why it is).
    """
    low, high = np.zeros(shape), np.ones(shape)
    best = np.minimum(function(low), function(high))
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_STEPS):
        keep_left = at_left <= at_right
        low, high = np.where(keep_left, low, left), np.where(keep_left, right, high)
        probe = np.where(keep_left, high - _GOLDEN * (high - low), low + _GOLDEN * (high - low))
        at_probe = function(probe)
        left, right = np.where(keep_left, probe, right), np.where(keep_left, left, probe)
        at_left, at_right = np.where(keep_left, at_probe, at_right), np.where(keep_left, at_left, at_probe)
    return np.minimum(best, np.minimum(at_left, at_right))
