r"""Exact finite-V expectations of the random energy model by the trapezoid rule in u = log t.

M(e^u) = E exp(-e^(u + s g)) is a convolution of the Gumbel-like exp(-e^x) with the Gaussian. Every integrand is
analytic in a strip (|Im u| < pi/2 for the Gumbel part) and decays at both ends, so the trapezoid rule of step 1/4 is
exact to 1e-15 (error exp(-pi^2 / h)). The Gaussian widens every feature by s, and M^V is a Gumbel law of scale
s / sqrt(2 log V): where that exceeds 1 the step grows with it. 1 - M is what is computed, never M: at V = 1e6 only the
last digits of M would matter.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

_STEP = 0.25  # in x = u + s g, and in u where the features are not wider
_REACH = 10.0  # of the Gaussian: beyond it 1e-23 of the mass
_EULER = 0.5772156649015329


def _density(g: Array) -> Array:
    density: Array = np.exp(-0.5 * g * g) / math.sqrt(2 * math.pi)
    return density


def _gaussian_nodes(s: float) -> Array:
    """Symmetric equidistant g whose spacing times s is at most the step in u, and never above 1/2."""
    spacing = min(0.5, _STEP / s) if s > 0 else 0.5
    half = int(np.ceil(_REACH / spacing))
    return spacing * np.arange(-half, half + 1, dtype=np.float64)


@lru_cache(maxsize=64)
def _transforms(s: float, v: float) -> tuple[Array, Array, Array]:
    """Equidistant grid u; 1 - M = E[1 - exp(-e^x)]; and E[e^(2x) exp(-e^x)], x = u + s g."""
    # X = log Exp(1) - log Z is inside the grid up to 1e-16: Z <= V e^(s 9.5) and E Z bounds it too; Z >= e^(s max g)
    low = -(37 + np.log(v) + min(s * s / 2, 9.5 * s))
    high = 4.0 - s * ndtri(np.exp(-38 / v)) if v > 2 else 4.0 + 9.5 * s
    g = _gaussian_nodes(s)
    weight = _density(g) * (g[1] - g[0])
    weight /= weight.sum()
    stride = max(1, int(s / max(1.0, math.sqrt(2 * math.log(v)))))  # step of u in units of _STEP
    u = low + stride * _STEP * np.arange(int(np.ceil((high - low) / (stride * _STEP))) + 1)
    if abs(s * (g[1] - g[0]) - _STEP) < 1e-9:  # x falls on the grid of u, refined and continued: a convolution
        half = len(g) // 2
        x = low + _STEP * np.arange(-half, stride * (len(u) - 1) + half + 1)

        def smear(values: Array) -> Array:
            if stride == 1:
                return np.asarray(np.convolve(values, weight, mode="valid"), np.float64)
            windows = sliding_window_view(values, len(weight))[::stride]
            return np.array([window @ weight for window in windows])  # at once they would be copied: gigabytes
    else:
        x = u[:, None] + s * g

        def smear(values: Array) -> Array:
            return values @ weight

    e = np.exp(np.minimum(x, 700.0))
    return u, smear(-np.expm1(-e)), smear(np.exp(np.minimum(2 * x, 700.0) - e))


def _power(one_minus_m: Array, count: float) -> Array:
    """M^count from 1 - M."""
    return np.exp(count * np.log1p(-np.minimum(one_minus_m, 1 - 2.0**-53)))


def log_partition(s: float, v: float) -> float:
    """E log Z."""
    u, missing, _ = _transforms(float(s), float(v))
    survival = _power(missing, v)
    mean_x = u[0] + (u[1] - u[0]) * (survival.sum() - 0.5 * (survival[0] + survival[-1]))
    return float(-_EULER - mean_x)  # equation B1


def participation(s: float, v: float) -> float:
    """E sum p^2."""
    u, missing, pairs = _transforms(float(s), float(v))
    return float(v * (u[1] - u[0]) * (pairs * _power(missing, v - 1)).sum())  # equation B1


def entropy(s: float, v: float) -> float:
    """E H."""
    return log_partition(s, v) - s * s * (1 - participation(s, v))  # equation B1


def _cells(f: Array, spacing: float) -> Array:
    """Integral of each row over each cell [i, i + 1] of an equidistant grid, to sixth order; 0 for the last."""
    f = np.pad(f, ((0, 0), (2, 3)), mode="edge")
    inner, middle, outer = f[:, 2:-3] + f[:, 3:-2], f[:, 1:-4] + f[:, 4:-1], f[:, :-5] + f[:, 5:]
    return np.asarray(spacing / 1440 * (802 * inner - 93 * middle + 11 * outer), np.float64)


def confidence(s: float, v: float) -> float:
    """E max p: a double integral over u and the largest Gaussian g."""
    if s == 0:
        return 1 / v
    u, missing, _ = _transforms(float(s), float(v))
    # The largest of V Gaussians lies in (lowest, 10); of that, only -45 < x < 4 matters at each u: below e^x, above
    # exp(-e^x) is nothing. The inner integral is cumulative, hence nodes denser than its narrow law alone would need.
    lowest = max(float(ndtri(np.exp(-40 / (v - 1)))), -_REACH)
    spacing = min(0.025, _STEP / (2 * s))
    nodes = np.arange(int(np.ceil(min(_REACH - lowest, 49 / s) / spacing)) + 1, dtype=np.float64)
    g = np.maximum((-45 - u) / s, lowest)[:, None] + spacing * nodes
    e = np.exp(np.minimum(u[:, None] + s * g, 700.0))
    inner = _density(g) * np.exp(-e)
    above = np.cumsum(_cells(inner, spacing)[:, ::-1], axis=1)[:, ::-1]  # integral of the inner function over (g, inf)
    rest = _power(missing[:, None] + above, v - 1)  # others below g: 1 - (M - integral above g)
    return float(v * spacing * (u[1] - u[0]) * (e * inner * rest).sum())
