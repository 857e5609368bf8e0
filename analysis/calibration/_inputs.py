"""Conversion of what callers hold (NumPy, torch, lists) to checked float64 and boolean arrays, torch never imported."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "as_numpy",
    "check_choice",
    "check_count",
    "confidences",
    "indices",
    "log1m_confidences",
    "losses",
    "outcomes",
    "pairs",
    "weights",
]


def as_numpy(name: str, value: Any) -> NDArray[Any]:
    """The argument as an array; a torch tensor is detached and copied to the host, bfloat16 through float32."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: select the entries to use.")
    if hasattr(value, "detach"):  # a torch tensor, recognised without importing torch
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists
        raise TypeError(f"{name} must be an array, got {type(value).__name__}.") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of numbers or booleans, got dtype {array.dtype}.")
    return array


def confidences(name: str, value: Any) -> NDArray[np.float64]:
    """Probabilities, flat and in float64; what rounding put above 1 becomes 1, anything else outside is refused."""
    array = as_numpy(name, value)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    # float16 and bfloat16 round at 1e-3 to 8e-3, float32 and float64 softmaxes stay within 1e-6 of 1.
    tolerance = 1e-2 if "bfloat16" in str(getattr(value, "dtype", "")) or array.dtype.itemsize == 2 else 1e-6
    array = array.astype(np.float64, copy=False).reshape(-1)
    low, high = (array.min(), array.max()) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1 + tolerance):  # also true of NaN
        if np.isnan(low) or np.isnan(high):
            raise ValueError(f"{name} must not be NaN, got {int(np.isnan(array).sum())} NaN of {array.size} values.")
        raise ValueError(f"{name} must be in [0, 1], got {float(low if low < 0 else high)!r}.")
    return np.minimum(array, 1.0) if high > 1 else array


def outcomes(name: str, value: Any) -> NDArray[np.bool_]:
    """Right or wrong, flat: booleans, or numbers that are exactly 0 or 1."""
    array = as_numpy(name, value).reshape(-1)
    if array.dtype.kind == "b":
        return array
    truth = array == 1
    if not np.array_equal(truth, array != 0):
        bad = array[truth != (array != 0)][0]
        raise ValueError(f"{name} must hold booleans or 0 and 1, got {bad.item()!r}.")
    return truth


def pairs(confidence: Any, correct: Any, *, empty: bool = False) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences and outcomes of one shape, flat; at least one of them unless ``empty`` allows none."""
    shapes = [tuple(np.shape(x)) for x in (confidence, correct)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"correct must have confidence's shape {shapes[0]}, got {shapes[1]}.")
    c, y = confidences("confidence", confidence), outcomes("correct", correct)
    if not (c.size or empty):
        raise ValueError("confidence must not be empty: the error of no sample is not defined.")
    return c, y


def alike(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Flat values, one a sample: of the confidences' shape, so that none is taken for another's."""
    array = as_numpy(name, value)
    if array.shape != shape:
        raise ValueError(f"{name} must have confidence's shape {shape}, got {array.shape}.")
    return array.reshape(-1)


def indices(name: str, value: Any, shape: tuple[int, ...], high: int) -> NDArray[np.int64]:
    """Flat whole numbers in [0, high), of the confidences' shape."""
    array = alike(name, value, shape)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {array.dtype}.")
    if array.size and not (array.min() >= 0 and array.max() < high):
        bad = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"{name} must be in [0, {high}), got {int(bad)}.")
    return array.astype(np.int64, copy=False)


def weights(name: str, value: Any, size: int) -> NDArray[np.float64]:
    """Flat non-negative weights, scaled to sum to 1; None means equal weights."""
    if value is None:
        return np.full(size, 1.0 / size)
    array = as_numpy(name, value).astype(np.float64).reshape(-1)
    if array.size != size:
        raise ValueError(f"{name} must have one entry a context ({size}), got {array.size}.")
    total = array.sum()
    if not (np.isfinite(total) and total > 0 and (array >= 0).all()):
        raise ValueError(f"{name} must be finite, at least 0 and not all 0, got a minimum of {array.min()!r}.")
    return array / total


def check_count(name: str, value: Any, low: int = 1) -> int:
    """A whole number of at least ``low``."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}.")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}.")
    return int(value)


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}.")


def log1m_confidences(value: Any, confidence: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """log(1 - confidence), flat; refused where it is far from the flat confidences, whose shape was ``shape``."""
    array = alike("log1m_confidence", value, shape).astype(np.float64, copy=False)
    off = np.abs(-np.expm1(array) - confidence)
    if array.size and not off.max() <= 1e-2:  # also true of NaN
        worst = int(np.argmax(np.where(np.isnan(off), np.inf, off)))
        raise ValueError(
            f"log1m_confidence must be log(1 - confidence), got {array[worst]} at a confidence of {confidence[worst]}."
        )
    return array


def losses(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Negative log-likelihoods, flat."""
    array = alike("nll", value, shape).astype(np.float64, copy=False)
    if not (array > -1e-6).all():
        raise ValueError(f"nll must be at least 0 and not NaN, got {array[~(array > -1e-6)][0]}.")
    return array
