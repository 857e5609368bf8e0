"""Post-hoc maps: isotonic, Platt and vector scaling, and the inverse of label smoothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit

from ..checks import as_numpy, interval, one_index, pip_install, refuse_probabilities, whole
from ._inputs import confidences, logits_and_labels, pairs


def _sklearn(module: str) -> Any:
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(f"this map needs scikit-learn: {pip_install('calibration')}") from error


def _shaped(confidence: Any) -> NDArray[np.float64]:
    return confidences("confidence", confidence).reshape(np.shape(confidence))


@dataclass(frozen=True)
class IsotonicMap:
    """Increasing, piecewise linear map of confidences, constant outside its knots; NaN is refused."""

    confidence: NDArray[np.float64]  # (knots,)
    accuracy: NDArray[np.float64]  # (knots,)

    def __call__(self, confidence: Any) -> NDArray[np.float64]:
        """The map, elementwise."""
        return np.interp(_shaped(confidence), self.confidence, self.accuracy)


@dataclass(frozen=True)
class PlattMap:
    """expit(slope * logit(confidence) + intercept); NaN is refused."""

    slope: float
    intercept: float

    def __call__(self, confidence: Any) -> NDArray[np.float64]:
        """The map, elementwise; 0 and 1 stay where they are for a positive slope."""
        return expit(self.slope * logit(_shaped(confidence)) + self.intercept)


@dataclass(frozen=True)
class VectorMap:
    """softmax(scale * logits + bias), one scale and one bias a class."""

    scale: NDArray[np.float64]  # (K,)
    bias: NDArray[np.float64]  # (K,)

    def __call__(self, logits: Any, *, allow_probabilities: bool = False) -> NDArray[np.float64]:
        """Log-probabilities ``(..., K)`` from logits like those of the fit.

        Raises:
            TypeError: If the logits are not floating.
            ValueError: If their last axis is not K, they are not finite, or they look like probabilities and
                ``allow_probabilities``, as of :func:`fit_vector`, does not say that these are meant.
        """
        z = as_numpy("logits", logits)
        if z.dtype.kind != "f":
            raise TypeError(f"logits must be floating, got dtype {z.dtype}.")
        if z.shape[-1:] != self.scale.shape:
            raise ValueError(f"logits must have shape (..., {self.scale.size}), got {z.shape}.")
        if not np.isfinite(z).all():
            raise ValueError("logits must be finite, got nan or infinity.")
        refuse_probabilities("logits", z, allow_probabilities)
        return log_softmax(self.scale * z + self.bias, axis=-1)


def fit_isotonic(confidence: Any, correct: Any) -> IsotonicMap:
    """Fit an increasing map from confidence to the chance of being right, by isotonic regression (scikit-learn).

    Args:
        confidence: Any shape, in [0, 1].
        correct: Whether the predictions were right, of the same shape.

    Returns:
        The map from confidence to calibrated confidence.

    Raises:
        ImportError: If scikit-learn is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`.

    References:
        Zadrozny, Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
    """
    c, y = pairs(confidence, correct)
    model = _sklearn("isotonic").IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(c, y)
    return IsotonicMap(model.X_thresholds_, model.y_thresholds_)


def fit_platt(confidence: Any, correct: Any) -> PlattMap:
    """Fit the chance of being right as a logistic function of the logit of confidence, unpenalised (scikit-learn).

    Where one confidence separates right from wrong the likelihood has no maximum: the slope is then merely large.

    Args:
        confidence: Any shape, in [0, 1]; cut to [1e-12, 1 - 1e-12] for the fit.
        correct: Whether the predictions were right, of the same shape; both kinds must occur.

    Returns:
        The map from confidence to calibrated confidence.

    Raises:
        ImportError: If scikit-learn is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`, or if all predictions are right or all wrong.

    References:
        Platt, "Probabilistic outputs for support vector machines", 1999, on logits as in Guo et al. 2017, Sec. 4.1.
    """
    c, y = pairs(confidence, correct)
    if y.all() or not y.any():
        raise ValueError("correct must hold right and wrong predictions: a logistic fit to one kind does not exist.")
    x = logit(np.clip(c, 1e-12, 1 - 1e-12))[:, None]
    model = _sklearn("linear_model").LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(x, y)
    return PlattMap(float(model.coef_[0, 0]), float(model.intercept_[0]))


def fit_vector(
    logits: Any,  # (N, K)
    target: Any,  # (N,)
    *,
    allow_probabilities: bool = False,
) -> VectorMap:
    """Fit a scale and a bias for each class by maximum likelihood, for few classes.

    A class that never occurs, or logits that separate the classes, leave the likelihood without a maximum: the scales
    and biases are then merely those at which it no longer grows.

    Args:
        logits: ``(N, K)``. Log-probabilities are logits too; probabilities are refused.
        target: Class indices ``(N,)``, integers.
        allow_probabilities: Take logits that look like probabilities or percentages, rounded and clipped ones too: none
            is negative, and rows that are not all zero sum to 1 or 100, each to 2 %, or, of ten rows and more, nine in
            ten to 10 %. Otherwise these are refused.

    Returns:
        The map from logits to log-probabilities; the biases add up to 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes or pandas indexes differ, a target is out of range, or logits are not finite or are
            probabilities.

    References:
        Guo et al., "On Calibration of Modern Neural Networks", 2017, Sec. 4.2 (vector scaling). arXiv:1706.04599

    Example:
        >>> logits = np.array([[2.0, 0.0], [0.0, 2.0]] * 10)
        >>> log_p = fit_vector(logits, [0, 1] * 8 + [1, 0] * 2)(logits)  # accuracy .8
        >>> np.exp(log_p[0]).round(4).tolist()
        [0.8, 0.2]
    """
    if len(shape := as_numpy("logits", logits).shape) != 2:
        raise ValueError(f"logits must have shape (N, K), got {shape}.")
    z, y = logits_and_labels(logits, target, ignore_index=None, allow_probabilities=allow_probabilities)
    z = z.astype(np.float64)
    n, k = z.shape
    rows = np.arange(n)

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_p = log_softmax(parameters[:k] * z + parameters[k:], axis=-1)
        residual = np.exp(log_p)
        residual[rows, y] -= 1
        return float(-log_p[rows, y].mean()), np.concatenate([(residual * z).mean(0), residual.mean(0)])

    start = np.concatenate([np.ones(k), np.zeros(k)])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-15, "maxiter": 10_000})
    scale, bias = best.x[:k], best.x[k:]
    return VectorMap(scale, bias - bias.mean())


@one_index
def unsmooth_confidence(confidence: Any, label_smoothing: ArrayLike, vocab_size: ArrayLike) -> NDArray[np.float64]:
    """Undo what smoothing does to a confidence: (c - b / V) / (1 - b), cut to [0, 1].

    The map that makes a model trained with smoothing at its optimum calibrated again, for the top label alone; whole
    distributions are for :func:`analysis.smoothing.unsmooth`.

    Args:
        confidence: In [0, 1], any shape.
        label_smoothing: Smoothing b in [0, 1).
        vocab_size: Number of classes V >= 2.

    Returns:
        The confidences, of the same shape.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is outside its range.

    Example:
        >>> float(unsmooth_confidence(0.9 * 0.7 + 0.1 / 4, 0.1, 4).round(4))
        0.7
    """
    c = _shaped(confidence)
    b = interval("label_smoothing", label_smoothing, 0, 1, open_high=True)
    return np.clip((c - b / whole("vocab_size", vocab_size, 2)) / (1 - b), 0, 1)  # equation D2
