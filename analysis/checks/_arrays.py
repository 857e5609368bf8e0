"""Numbers and arrays of them, as float64: real, finite, in range, broadcastable, possible."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments import check_flag, converted, shown

# What sums of float32 numbers may be off by, in nats and as a share: losses of a large vocabulary have an lse of 1000.
_ROUNDING = 1e-3


def real(name: str, value: Any) -> NDArray[np.float64]:
    """Return the argument as a float64 array; refuse NaN, booleans, complex numbers and anything not numeric."""
    array = converted(name, value)
    if array is None or array.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be a real number or an array of them, got {shown(value)}.")
    array = array.astype(np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} must not be NaN, got {shown(value)}.")
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
    """Return the argument as a float64 array inside [low, high]; infinite values are always refused."""
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
        raise ValueError(f"{name} must be {allowed}, got {shown(value)}.")
    return array


def whole(name: str, value: ArrayLike, low: int) -> NDArray[np.float64]:
    """Return the argument as a float64 array of whole numbers of at least ``low`` (sizes: vocabulary, hidden)."""
    array = interval(name, value, low)
    if not np.all(array == np.floor(array)):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}.")
    return array


def one_whole(name: str, value: ArrayLike, low: int) -> int:
    """Return the argument as one whole number of at least ``low``, where arrays make no sense."""
    array = whole(name, value, low)
    if array.ndim:
        raise ValueError(f"{name} must be one number here, got the shape {array.shape}.")
    return int(array)


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return one finite Python number, as fields of a config hold; a NumPy scalar has another type and rounding."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a Python number, got {shown(value)}.")
    if math.isnan(value):
        raise ValueError(f"{name} must not be NaN, got {value!r}.")
    if not low < value < high:  # grids check millions: arrays only for what may be refused
        interval(name, value, low, high, open_low=open_low)
    return value


def check_numbers(name: str, values: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse all but a tuple of numbers that pass :func:`check_number`; a list could not be hashed with its config."""
    if not isinstance(values, tuple):
        raise TypeError(f"{name} must be a tuple of numbers, got {shown(values)}.")
    for value in values:
        check_number(name, value, low, high)


def softcap_or_inf(softcap: ArrayLike | None) -> NDArray[np.float64]:
    """Return the cap as a positive float64 array; None means no cap and becomes infinity."""
    return np.asarray(np.inf) if softcap is None else interval("softcap", softcap, 0, open_low=True)


def require_broadcast(**arrays: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the common shape of the named arrays, or raise a ValueError that lists their shapes."""
    try:
        return np.broadcast_shapes(*(array.shape for array in arrays.values()))
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"the arguments must broadcast against each other, got the shapes {shapes}.") from error


def check_losses(
    entropy: NDArray[np.float64],
    cross_entropy: NDArray[np.float64],
    uniform_cross_entropy: NDArray[np.float64] | None = None,
) -> None:
    """Refuse means that no softmax has: 0 <= H, 0 <= CE and H <= CE_u in nats must hold up to the rounding of sums.

    H = lse - sum p z and CE_u = lse - mean z: a softmax puts its weight where the logits are large.
    """
    for name, values in (("entropy", entropy), ("cross_entropy", cross_entropy)):
        if np.any(values < -_ROUNDING):
            raise ValueError(f"{name} must be at least 0, got {values.min():.6g}: it is a mean in nats.")
    if uniform_cross_entropy is None:
        return
    high, low = np.broadcast_arrays(entropy, uniform_cross_entropy)
    above = high - low - _ROUNDING * (1 + np.abs(low))
    if np.any(above > 0):
        worst = int(np.argmax(above))
        raise ValueError(
            f"entropy must be at most uniform_cross_entropy, as in every softmax, got {high.flat[worst]:.6g} "
            f"and {low.flat[worst]:.6g}."
        )


def distribution(name: str, value: ArrayLike, *, tolerance: float = 1e-4) -> NDArray[np.float64]:
    """Return the argument as probabilities (..., V), whose last axis sums to 1 within ``tolerance``."""
    array = interval(name, value, 0)
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{name} must have shape (..., vocab_size), got the shape {array.shape}.")
    sums = array.sum(axis=-1)
    off = np.abs(sums - 1.0)
    if np.any(off > tolerance):
        raise ValueError(f"{name} must sum to 1 over its last axis, got a sum of {sums.flat[int(off.argmax())]:.6g}.")
    return array


def sum_to_one(rows: NDArray[np.float64]) -> bool:
    """Tell whether every row of these numbers in [0, 1] sums to 1, up to the rounding of half precision."""
    return bool((np.abs(rows.sum(-1) - 1) <= 1e-2).all())


def refuse_probabilities(name: str, logits: NDArray[Any], allowed: bool) -> None:
    """Refuse logits ``(..., V)`` whose rows all lie in [0, 1] and sum to 1: they are probabilities, almost surely."""
    if check_flag("allow_probabilities", allowed) or logits.ndim < 1 or logits.shape[-1] < 2 or not logits.size:
        return
    if logits.min() >= 0 and logits.max() <= 1 + 1e-2 and sum_to_one(logits.astype(np.float64, copy=False)):
        raise ValueError(
            f"{name} must be logits, got rows in [0, 1] that sum to 1: take the logarithm of probabilities, or say "
            "allow_probabilities=True if these are logits."
        )
