"""Argument checks shared by the theory functions: real, finite, in range, broadcastable.

Every check returns a float64 array or raises an error that names the argument, what is allowed and what came.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["distribution", "interval", "one_whole", "real", "require_broadcast", "softcap_or_inf", "whole"]


def _shown(value: object) -> str:
    """The value as the caller wrote it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def real(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """The argument as a float64 array; NaN, booleans, complex numbers and anything not numeric are refused."""
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, tensors that require grad
        raise TypeError(f"{name} must be a real number or an array of them, got {_shown(value)}.") from error
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a real number or an array of them, got {_shown(value)}.")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} must not be NaN, got {_shown(value)}.")
    return array


def interval(
    name: str,
    value: ArrayLike,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> NDArray[np.float64]:
    """The argument as a float64 array inside [low, high]; an infinite end is always excluded."""
    array = real(name, value)
    open_low, open_high = open_low or math.isinf(low), open_high or math.isinf(high)
    above = array > low if open_low else array >= low
    below = array < high if open_high else array <= high
    if not np.all(above & below):
        if math.isinf(low) and math.isinf(high):
            allowed = "finite"
        elif math.isinf(high):
            allowed = f"finite and {'greater than' if open_low else 'at least'} {low:g}"
        else:
            allowed = f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be {allowed}, got {_shown(value)}.")
    return array


def whole(name: str, value: ArrayLike, low: int) -> NDArray[np.float64]:
    """The argument as a float64 array of whole numbers of at least ``low`` (sizes: vocabulary, hidden)."""
    array = interval(name, value, low)
    if not np.all(array == np.floor(array)):
        raise ValueError(f"{name} must be a whole number, got {_shown(value)}.")
    return array


def one_whole(name: str, value: ArrayLike, low: int) -> int:
    """The argument as one whole number of at least ``low``, where arrays make no sense."""
    array = whole(name, value, low)
    if array.ndim:
        raise ValueError(f"{name} must be one number here, got the shape {array.shape}.")
    return int(array)


def softcap_or_inf(softcap: ArrayLike | None) -> NDArray[np.float64]:
    """The cap as a positive float64 array; None means no cap and becomes infinity."""
    return np.asarray(np.inf) if softcap is None else interval("softcap", softcap, 0, open_low=True)


def require_broadcast(**arrays: NDArray[np.float64]) -> tuple[int, ...]:
    """The common shape of the named arrays, or a ValueError that lists their shapes."""
    try:
        return np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the arguments must broadcast against each other, got the shapes {shapes}.") from error


def distribution(name: str, value: ArrayLike, *, tolerance: float = 1e-4) -> NDArray[np.float64]:
    """The argument as probabilities (..., V): at least 0, summing to 1 over the last axis within ``tolerance``."""
    array = interval(name, value, 0)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., vocab_size), got the shape {array.shape}.")
    sums = array.sum(axis=-1)
    off = np.abs(sums - 1.0)
    if np.any(off > tolerance):
        raise ValueError(f"{name} must sum to 1 over its last axis, got a sum of {sums.flat[int(off.argmax())]:.6g}.")
    return array
