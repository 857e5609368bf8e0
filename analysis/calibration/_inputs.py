"""Conversion of what callers hold (NumPy, torch, lists) to checked float64 and boolean arrays, torch never imported."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_numpy, check_count, check_index, refuse_probabilities, sum_to_one

MOST_BINS = 2**20  # memory grows with the bins, samples or none; no data fill as many


def confidences(name: str, value: Any) -> NDArray[np.float64]:
    """Probabilities, flat and in float64; what rounding put above 1 becomes 1, anything else outside is refused."""
    array = as_numpy(name, value)
    if array.size and array.dtype.kind != "f":
        raise TypeError(
            f"{name} must hold probabilities, floating numbers, got dtype {array.dtype}: classes, outcomes?"
        )
    # float16 and bfloat16 round at 1e-3 to 8e-3, float32 and float64 softmaxes stay within 1e-6 of 1.
    tolerance = 1e-2 if "bfloat16" in str(getattr(value, "dtype", "")) or array.dtype.itemsize == 2 else 1e-6
    array = array.astype(np.float64, copy=False).reshape(-1)
    low, high = (array.min(), array.max()) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1 + tolerance):  # also true of NaN
        if np.isnan(low) or np.isnan(high):
            raise ValueError(f"{name} must not be NaN, got {int(np.isnan(array).sum())} NaN of {array.size} values.")
        hint = " (exponentiate log-probabilities)" if high <= 0 else ""
        hint = " (divide percentages by 100)" if low >= 0 and 2 <= high <= 100 else hint
        raise ValueError(f"{name} must be in [0, 1], got {float(low if low < 0 else high)!r}{hint}.")
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
    check_index(confidence=confidence, correct=correct)
    shapes = [tuple(as_numpy(n, x).shape) for n, x in (("confidence", confidence), ("correct", correct))]
    if shapes[0] != shapes[1]:
        raise ValueError(f"correct must have confidence's shape {shapes[0]}, got {shapes[1]}.")
    c, y = confidences("confidence", confidence), outcomes("correct", correct)
    if c.size and len(shapes[0]) > 1 and shapes[0][-1] > 1:
        rows = (-1, shapes[0][-1])
        if sum_to_one(c.reshape(rows)) and (y.reshape(rows).sum(-1) == 1).all():
            raise ValueError(
                "confidence must be that of the predicted class, got distributions with one-hot labels: take "
                "confidence.max(-1) and confidence.argmax(-1) == label; for classwise calibration flatten both or use "
                "CalibrationState.update_classes."
            )
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


def check_labels(name: str, labels: NDArray[Any], vocab_size: int, ignore_index: int | None = None) -> None:
    """Refuse class indices ``(...)`` that are no integers or lie outside [0, vocab_size) and are not ignored."""
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold class indices, integers, got dtype {labels.dtype}.")
    bad = (labels < 0) | (labels >= vocab_size)
    if ignore_index is not None:
        bad &= labels != ignore_index
    if bad.any():
        or_ignored = "" if ignore_index is None else f" or equal ignore_index={ignore_index}"
        raise ValueError(f"{name} must be in [0, {vocab_size}){or_ignored}, got {int(labels[bad][0])}.")


def logits_and_labels(
    logits: Any, target: Any, *, ignore_index: int | None, allow_probabilities: bool
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Finite logits ``(n, V)`` in their own dtype and class indices ``(n,)``, at least one; ignored ones left out."""
    check_index(logits=logits, target=target)
    z, y = as_numpy("logits", logits), as_numpy("target", target)
    if z.dtype.kind != "f":
        raise TypeError(f"logits must be floating, got dtype {z.dtype}.")
    if z.ndim < 1 or not z.shape[-1] or y.shape != z.shape[:-1]:
        raise ValueError(
            f"target must have shape {z.shape[:-1]}, logits' without the last axis (class indices, not one-hot), "
            f"got {y.shape}."
        )
    check_labels("target", y, z.shape[-1], ignore_index)
    z, y = z.reshape(-1, z.shape[-1]), y.reshape(-1)
    if ignore_index is not None and (y == ignore_index).any():
        z, y = z[y != ignore_index], y[y != ignore_index]
    if not y.size:
        raise ValueError("target must leave at least one sample.")
    if not np.isfinite(z).all():
        raise ValueError("logits must be finite, got nan or infinity.")
    refuse_probabilities("logits", z, allow_probabilities)
    return z, y


def check_bins(value: Any, samples: int | None = None) -> int:
    """A number of bins: bounded, as memory grows with it; of equal-mass bins none may be empty."""
    n_bins = check_count("n_bins", value, 1, MOST_BINS)
    if samples is not None and n_bins > samples:
        raise ValueError(
            f"n_bins must be at most the number of samples, {samples}, with binning='quantile', got {n_bins}."
        )
    return n_bins


def weights(name: str, value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Flat non-negative weights of contexts ``shape``, scaled to sum to 1; None means equal weights."""
    if value is None:
        size = int(np.prod(shape))
        return np.full(size, 1.0 / size)
    array = as_numpy(name, value)
    if array.dtype.kind == "b":
        raise TypeError(f"{name} must be numbers, got booleans: select the contexts to use.")
    array = array.astype(np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have one entry a context, the shape {shape}, got {array.shape}.")
    array = array.reshape(-1)
    total = array.sum()
    if not (np.isfinite(total) and total > 0 and (array >= 0).all()):
        raise ValueError(f"{name} must be finite, at least 0 and not all 0, got a minimum of {array.min()!r}.")
    return array / total


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
