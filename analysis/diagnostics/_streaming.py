"""Reading heads and features of any origin in float64, a chunk at a time; torch is never imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import as_numpy, interval

Array = NDArray[np.float64]


def shape_of(name: str, array: Any) -> tuple[int, ...]:
    """Shape of an array or tensor; lists are refused, since they would be converted whole."""
    shape = getattr(array, "shape", None)
    if shape is None:
        raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(array).__name__}.")
    return tuple(int(n) for n in shape)


def _float64(name: str, array: Any) -> Array:
    return interval(name, as_numpy(name, array))


def chunks(name: str, array: Any, chunk_size: int) -> Iterator[Array]:
    """Consecutive rows in float64."""
    for begin in range(0, shape_of(name, array)[0], chunk_size):
        yield _float64(name, array[begin : begin + chunk_size])


def _batches(name: str, values: Any) -> Iterable[Any]:
    if hasattr(values, "shape"):
        return (values,)
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be an array, a tensor or an iterable of them, got {type(values).__name__}.")
    return values


def measure_features(weight: Any, features: Any, targets: Any, covariance: Array, chunk_size: int) -> dict[str, float]:
    """Norms of the features, spread of their logits (h^T Cov(w) h) and cosine to the target rows."""
    d = covariance.shape[0]
    count, largest, squares, variance, cosine = 0, 0.0, 0.0, 0.0, 0.0
    paired = (
        zip(_batches("features", features), _batches("targets", targets), strict=True) if targets is not None else None
    )
    for batch, labels in paired or ((batch, None) for batch in _batches("features", features)):
        shape = shape_of("features", batch)
        if not shape or shape[-1] != d:
            raise ValueError(f"features must have shape (..., {d}), got the shape {shape}.")
        flat = batch.reshape(-1, d)
        tokens = None
        if labels is not None:
            tokens = _tokens(labels, shape[:-1], shape_of("weight", weight)[0])
        for begin in range(0, flat.shape[0], chunk_size):
            h = _float64("features", flat[begin : begin + chunk_size])
            norms = (h * h).sum(axis=1)
            count += len(h)
            largest = max(largest, float(norms.max()))
            squares += float(norms.sum())
            variance += float(((h @ covariance) * h).sum())
            if tokens is not None:
                rows = _float64("weight", weight[tokens[begin : begin + chunk_size]])
                lengths = np.sqrt(norms) * np.linalg.norm(rows, axis=1)
                cosine += float(((h * rows).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)).sum())
    if count == 0:
        raise ValueError("features must hold at least one vector, got none.")
    measured = {
        "feature_norm_max": float(np.sqrt(largest)),
        "feature_norm_rms": float(np.sqrt(squares / count)),
        "logit_std": float(np.sqrt(max(variance, 0.0) / count)),
    }
    return measured | ({} if targets is None else {"target_cosine": cosine / count})


def _tokens(labels: Any, shape: tuple[int, ...], vocab_size: int) -> NDArray[np.int64]:
    array = as_numpy("targets", labels)
    if array.dtype.kind not in "iu":
        raise TypeError(f"targets must be integers, got the dtype {array.dtype}.")
    if array.shape != shape:
        raise ValueError(f"targets must have the shape {shape} of the features, got the shape {array.shape}.")
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise ValueError(f"targets must be in [0, {vocab_size}), got values from {array.min()} to {array.max()}.")
    return array.reshape(-1).astype(np.int64)
