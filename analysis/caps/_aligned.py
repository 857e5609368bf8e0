"""Heads whose features point along their own rows: kernel and linear-programming caps, random codes (A4)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..checks import interval, one_index, require_broadcast, softcap_or_inf, whole
from ._gaps import gap_to_confidence
from ._sphere import log_kernel_mean

_DEGREE = 12  # of the polynomial in the programme
_SOLVE_POINTS, _CHECK_POINTS = 400, 20_000


@one_index
def aligned_cap(
    norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike, *, method: str = "kernel"
) -> NDArray[np.float64]:
    r"""Bound the confidence that an **aligned** head (h_k along w_k, all norms equal) can have in every token.

    ``"kernel"``: :math:`p \le e^m / (V A_D(m))`, :math:`A_D(m) = E\,e^{mt}` over two random directions. Reason:
    e^{mt} is a positive-definite function of the cosine t, so its sum over all pairs of rows is at least V^2 times
    its mean.

    ``"linear_program"``: the best polynomial :math:`f = \sum_i f_i C_i` (normalised Gegenbauer, f_i >= 0 for 1 <= i
    <= 12) with f(t) <= e^{mt} on [-1, 1] gives :math:`p \le 1 / (1 + e^{-m}(V f_0 - f(1)))` (Delsarte). The solver's
    f is **certified**: its largest excess over e^{mt}, bounded between the points of a fine grid by the second
    derivatives (and rounding), is subtracted. The smaller of this and the kernel cap is returned. About 10 ms an
    element; needs D >= 2 (at D = 1 the kernel cap is returned).

    Args:
        norm_product: m >= 0, in logit units; with a temperature T pass m / T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.
        method: ``"kernel"`` or ``"linear_program"``.

    Returns:
        The confidence cap, with the broadcast shape. Proven for aligned heads only: that free features never beat it
        is a conjecture.

    Raises:
        ValueError: If an argument is outside its range, the shapes do not broadcast or the method is unknown.

    References:
        Delsarte, Goethals, Seidel, "Spherical codes and designs", Geometriae Dedicata 6 (1977).

    Example:
        >>> aligned_cap([2.0, 4.0], 256, 8).round(4).tolist()
        [0.0226, 0.0852]
        >>> aligned_cap([2.0, 4.0], 256, 8, method="linear_program").round(4).tolist()
        [0.0226, 0.0851]
    """
    if not isinstance(method, str) or method not in ("kernel", "linear_program"):
        raise ValueError(f'method must be "kernel" or "linear_program", got {method!r}.')
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    d = whole("hidden_size", hidden_size, 1)
    require_broadcast(norm_product=m, vocab_size=v, hidden_size=d)
    return gap_to_confidence(aligned_gap(m, v, d, method), v)


def aligned_gap(m: ArrayLike, v: ArrayLike, d: ArrayLike, method: str) -> NDArray[np.float64]:
    """The bound of :func:`aligned_cap` as a gap in nats, of checked arguments; inf where it proves nothing."""
    m, v, d = np.asarray(m, np.float64), np.asarray(v, np.float64), np.asarray(d, np.float64)
    log_p = np.minimum(m - np.log(v) - log_kernel_mean(m, d), 0.0)
    with np.errstate(divide="ignore"):
        kernel = log_p - np.log(-np.expm1(log_p)) + np.log(v - 1)  # the gap of a log-probability
    if method == "kernel":
        return kernel[()]
    return np.minimum(kernel, np.vectorize(programme_gap, otypes=[np.float64])(m, v, d))[()]


def gegenbauer(t: NDArray[np.float64], d: float) -> NDArray[np.float64]:
    """C_0 ... C_12 at t for the sphere in dimension d >= 2, normalised to C_i(1) = 1; shape (13, len(t))."""
    table = [np.ones_like(t), t]
    for i in range(1, _DEGREE):
        table.append(((2 * i + d - 2) * t * table[i] - i * table[i - 1]) / (i + d - 2))
    return np.stack(table)


def programme_gap(m: float, v: float, d: float) -> float:
    """Gap in nats that one certified linear programme allows to an aligned head; inf where it proves nothing."""
    if d < 2 or m == 0 or m > 300:  # beyond, exp(m t) leaves the range of the solver and the cap is 1.0 anyway
        return math.inf if m > 0 else 0.0
    from scipy.optimize import linprog  # here: it triples the import time of the module

    t = np.cos(np.linspace(0.0, np.pi, _SOLVE_POINTS))
    basis = gegenbauer(t, d)
    objective = -np.r_[v - 1.0, -np.ones(_DEGREE)] / v  # minus (V f_0 - f(1)) / V
    scale = np.exp(-m * t)  # rows relative to exp(m t): the solver's tolerance is absolute
    solution = linprog(
        objective,
        A_ub=(basis * scale).T,
        b_ub=np.ones_like(t),
        bounds=[(None, None)] + [(0, None)] * _DEGREE,
        method="highs",
    )
    if solution.x is None:
        return math.inf
    f = np.r_[solution.x[0], np.maximum(solution.x[1:], 0.0)]
    rivals = v * f[0] - f.sum() - (v - 1) * _excess(f, m, d)  # equation A4: lower bound on the mean of sum exp(m t)
    return float(m - np.log(rivals / (v - 1))) if rivals > 0 else math.inf


def _excess(f: NDArray[np.float64], m: float, d: float) -> float:
    """Upper bound on max over [-1, 1] of f(t) - exp(m t), and 0 where f stays below."""
    angle = np.linspace(np.pi, 0.0, _CHECK_POINTS)  # t ascending, dense at both ends
    t = np.cos(angle)
    above = f @ gegenbauer(t, d) - np.exp(m * t)
    i = np.arange(_DEGREE + 1)
    # |C_i''| <= C_i''(1) = i (i+D-2) (i-1) (i+D-1) / ((D-1) (D+1)); exp(m t)'' is largest at the right end of a cell
    curvature = np.abs(f) @ (i * (i + d - 2) * (i - 1) * (i + d - 1) / ((d - 1) * (d + 1)))
    slack = np.diff(t) ** 2 / 8 * (curvature + m * m * np.exp(m * t[1:]))
    rounding = 64 * np.finfo(np.float64).eps * (np.abs(f).sum() + np.exp(m * t[1:]))
    return float(max((np.maximum(above[1:], above[:-1]) + slack + rounding).max(), 0.0))


@one_index
def random_code_confidence(
    norm_product: ArrayLike, vocab_size: ArrayLike, hidden_size: ArrayLike, *, softcap: ArrayLike | None = None
) -> NDArray[np.float64]:
    r"""Return the confidence (geometric mean) that random rows on the sphere reach at least, with h_k along w_k.

    .. math:: \exp E\log p_k \ge \frac{1}{1 + (V-1)\,A_D(m)\,e^{-f(m)}}, \qquad f(x) = c\tanh(x/c)

    Reason: -log(1 + x) is convex in x (Jensen), and a rival contributes E exp(f(mt)) <= A_D(m) on average, since
    t and -t are equally likely and cosh f(x) <= cosh x. Some code is at least as good as the average one, so a head
    with this geometric mean exists.

    Args:
        norm_product: m >= 0, in logit units before the cap; without a softcap, pass m / T for a temperature T.
        vocab_size: Number of classes V >= 2.
        hidden_size: Width D >= 1.
        softcap: Cap c > 0 of ``c tanh(z / c)``, or None for no cap.

    Returns:
        The confidence, with the broadcast shape.

    Raises:
        ValueError: If an argument is outside its range or the shapes do not broadcast.

    Example:
        >>> random_code_confidence(20.0, 32768, [64, 512, 4096]).round(4).tolist()
        [0.9987, 0.9999, 0.9999]
    """
    m, v = interval("norm_product", norm_product, 0), whole("vocab_size", vocab_size, 2)
    d, c = whole("hidden_size", hidden_size, 1), softcap_or_inf(softcap)
    require_broadcast(norm_product=m, vocab_size=v, hidden_size=d, softcap=c)
    finite = np.where(np.isinf(c), 1.0, c)
    own = np.where(np.isinf(c), m, finite * np.tanh(m / finite))
    return gap_to_confidence(own - log_kernel_mean(m, d), v)  # equation A4
