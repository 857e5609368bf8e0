"""The best low-rank head: moment matching for given rows (D3) and the weighted-SVD prediction (E2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax, xlogy

from ..checks import distribution, interval, one_whole

Array = NDArray[np.float64]

_BLOCK = 2**24  # numbers of the curvatures of one block of targets, 128 MB


class MatchedFeatures(NamedTuple):
    """Features (..., D), log-probabilities (..., V) and the divergence KL(target || model) (...) in nats."""

    features: Array
    log_probabilities: Array
    divergence: Array


def match_moments(
    weight: ArrayLike, probabilities: ArrayLike, *, bias: ArrayLike = 0.0, tol: float = 1e-10
) -> MatchedFeatures:
    r"""Find the best unconstrained feature for each target distribution q under a fixed head W: no softcap, any D.

    At the minimiser :math:`W^T p_h = W^T q`: the model has the moments of the target and, among all distributions
    that do, the largest entropy (relative to the bias). Without a bias therefore H(p_h) = CE(q, p_h) = H(q) + KL(q ||
    p_h): a rank bottleneck inflates the entropy by exactly its divergence, so that on infinite data it makes no model
    over- or under-confident on average in H - CE. Convex in h; solved by damped Newton steps, all targets at once.

    Args:
        weight: Rows W, shape (V, D).
        probabilities: Targets q, shape (..., V). Zeros are allowed as long as a finite minimiser exists.
        bias: Added to the logits, broadcastable to (V,).
        tol: Largest allowed component of W^T (p - q), relative to the largest row norm.

    Returns:
        Features, log-probabilities and divergences.

    Raises:
        ValueError: If an argument is outside its range, the shapes do not fit, or a target has no finite minimiser
            (its moments lie on the boundary of the hull of the rows, as for a one-hot target on an extreme row).

    Example:
        >>> weight = [[1.0], [0.0], [-1.0]]
        >>> float(match_moments(weight, [0.5, 0.3, 0.2]).features.round(3)[0])
        0.466
    """
    w, q = interval("weight", weight), distribution("probabilities", probabilities)
    if w.ndim != 2 or w.shape[0] != q.shape[-1]:
        raise ValueError(f"weight must have shape ({q.shape[-1]}, hidden_size), got the shape {w.shape}.")
    offset = np.broadcast_to(interval("bias", bias), (w.shape[0],))
    targets = q.reshape(-1, q.shape[-1])
    targets = targets / targets.sum(axis=1, keepdims=True)
    tol = float(interval("tol", tol, 0, open_low=True)) * max(float(np.linalg.norm(w, axis=1).max()), 1e-300)
    step = max(1, _BLOCK // (w.shape[1] * max(w.shape)))
    blocks = [_match(w, targets[i : i + step], offset, tol) for i in range(0, len(targets), step)]
    h, log_p = (np.concatenate(x) for x in (zip(*blocks, strict=True) if blocks else ([targets @ w], [targets])))
    divergence = np.maximum((xlogy(targets, targets) - targets * log_p).sum(axis=1), 0.0)
    shape = q.shape[:-1]
    return MatchedFeatures(h.reshape(*shape, -1), log_p.reshape(q.shape), divergence.reshape(shape)[()])  # equation D3


def _match(w: Array, targets: Array, offset: Array, tol: float) -> tuple[Array, Array]:
    """Features and log-probabilities whose moments are within ``tol`` of those of the targets ``(n, V)``."""
    moments = targets @ w
    ridge = 1e-13 * float((w**2).sum(axis=1).max()) * np.eye(w.shape[1])
    h = np.zeros_like(moments)
    for _ in range(200):
        log_p = log_softmax(h @ w.T + offset, axis=1)
        p = np.exp(log_p)
        mean = p @ w
        gradient = mean - moments
        if np.abs(gradient).max(initial=0.0) <= tol:
            break
        curvature = np.einsum("nv,vi,vj->nij", p, w, w, optimize=True) - mean[:, :, None] * mean[:, None, :] + ridge
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        # along the step the third derivative is at most d times the second, d the range of the logits' change: with
        # that bound log(1 + d) / d of a Newton step always descends
        d = np.ptp(step @ w.T, axis=1, keepdims=True)
        h = h - step * np.where(d > 1e-8, np.log1p(d) / np.maximum(d, 1e-300), 1.0)
    else:
        log_p = log_softmax(h @ w.T + offset, axis=1)
    if np.abs(np.exp(log_p) @ w - moments).max(initial=0.0) > tol:
        raise ValueError("probabilities must have moments inside the hull of the rows of weight: no finite minimiser.")
    return h, log_p


class LowRankHead(NamedTuple):
    """Rows (V, D), features (N, D) and bias (V,) with the predicted and the actual mean divergence, in nats."""

    weight: Array
    features: Array
    bias: Array
    predicted: float
    divergence: float


def weighted_svd_head(probabilities: ArrayLike, hidden_size: int) -> LowRankHead:
    r"""Make a head of width D for known conditionals without training, by truncated SVD of their log-probabilities.

    Columns are weighted by the square root of the unigram pi, centred over tokens and over contexts (the mean goes to
    the bias); the discarded singular values predict the loss of rank,

    .. math:: \mathrm{predicted} = \frac{1}{2N} \sum_{j > D} \sigma_j^2,

    since KL(p || p') is half the p-weighted variance of the error of the log-probabilities, to second order, with the
    unigram in the place of each p. **Heuristic**, good for flat conditionals only: for teachers of logit std 1 the
    prediction is within 7 % of this head's divergence, which is 1.0 to 1.3 times that of the best head; at std 3 the
    factors reach 1.9 and 5.7. Refining the features by :func:`match_moments` gives a tighter upper bound on the optimum
    (within a factor of 2 there).

    Args:
        probabilities: Conditionals, shape (N, V), all positive.
        hidden_size: Width D >= 0, below min(N, V).

    Returns:
        The head and its divergences. Its logits are ``features @ weight.T + bias``.

    Raises:
        ValueError: If ``probabilities`` are not positive distributions of shape (N, V) or the width is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> z = rng.standard_normal((50, 4)) @ rng.standard_normal((4, 30))
        >>> p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        >>> weighted_svd_head(p, 4).divergence < 1e-12  # the conditionals have rank 4
        True
    """
    p, d = distribution("probabilities", probabilities), one_whole("hidden_size", hidden_size, 0)
    if p.ndim != 2 or np.any(p <= 0):
        raise ValueError(f"probabilities must be positive, of shape (contexts, vocab_size), got the shape {p.shape}.")
    if d >= min(p.shape):
        raise ValueError(f"hidden_size must be below min(contexts, vocab_size) = {min(p.shape)}, got {d}.")
    p = p / p.sum(axis=1, keepdims=True)
    unigram = p.mean(axis=0)
    root = np.sqrt(unigram)
    z = np.log(p)
    z = z - (z @ unigram)[:, None]  # a shift of a row changes no probability: take out the weighted mean
    bias = z.mean(axis=0)
    left, values, right = np.linalg.svd((z - bias) * root, full_matrices=False)  # equation E2
    features, weight = left[:, :d] * values[:d], right[:d].T / root[:, None]
    log_q = log_softmax(features @ weight.T + bias, axis=1)
    divergence = float((p * (np.log(p) - log_q)).sum(axis=1).mean())
    return LowRankHead(weight, features, bias, float((values[d:] ** 2).sum() / (2 * len(p))), max(divergence, 0.0))
