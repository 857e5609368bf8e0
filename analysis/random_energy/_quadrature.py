r"""Exact finite-V expectations of the random energy model by the trapezoid rule in u = log t.

M(e^u) = E exp(-e^(u + s g)) is a convolution of the Gumbel-like exp(-e^x) with the Gaussian. Every integrand is
analytic in a strip (|Im u| < pi/2 for the Gumbel part) and decays at both ends, so the trapezoid rule of step 1/4 is
exact to 1e-15 (error exp(-pi^2 / h)). 1 - M is what is computed, never M: at V = 1e6 only the last digits of M would
matter.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

__all__ = ["confidence", "entropy", "log_partition", "participation"]

_STEP = 0.25  # in u
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
    """Grid u; 1 - M = E[1 - exp(-e^x)]; and E[e^(2x) exp(-e^x)], x = u + s g."""
    # X = log Exp(1) - log Z is inside the grid up to 1e-16: Z <= V e^(s 9.5) and E Z bounds it too; Z >= e^(s max g)
    low = -(37 + np.log(v) + min(s * s / 2, 9.5 * s))
    high = 4.0 - s * ndtri(np.exp(-38 / v)) if v > 2 else 4.0 + 9.5 * s
    g = _gaussian_nodes(s)
    weight = _density(g) * (g[1] - g[0])
    weight /= weight.sum()
    cells = int(np.ceil((high - low) / _STEP))
    u = low + _STEP * np.arange(cells + 1)
    stride = s * (g[1] - g[0])
    if abs(stride - _STEP) < 1e-9:  # x falls on the grid of u, continued: a convolution
        half = len(g) // 2
        x = low + _STEP * np.arange(-half, cells + 1 + half)

        def smear(values: Array) -> Array:
            return np.asarray(np.convolve(values, weight, mode="valid"), np.float64)
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
    mean_x = u[0] + _STEP * (survival.sum() - 0.5 * (survival[0] + survival[-1]))
    return float(-_EULER - mean_x)  # equation B1


def participation(s: float, v: float) -> float:
    """E sum p^2."""
    _, missing, pairs = _transforms(float(s), float(v))
    return float(v * _STEP * (pairs * _power(missing, v - 1)).sum())  # equation B1


def entropy(s: float, v: float) -> float:
    """E H."""
    return log_partition(s, v) - s * s * (1 - participation(s, v))  # equation B1


def confidence(s: float, v: float) -> float:
    """E max p: a double integral over u and the largest Gaussian g."""
    if s == 0:
        return 1 / v
    u, missing, _ = _transforms(float(s), float(v))
    # nodes for the largest of V Gaussians, denser than 1/40: its law is narrow and the inner integral is cumulative
    lowest = max(float(ndtri(np.exp(-40 / (v - 1)))), -_REACH)
    spacing = min(0.025, _STEP / s)
    g = np.arange(lowest, _REACH, spacing)
    x = u[:, None] + s * g
    e = np.exp(np.minimum(x, 700.0))
    inner = _density(g) * np.exp(-e)
    # integral of the inner function over (g, infinity), cell by cell to fourth order
    padded = np.pad(inner, ((0, 0), (1, 2)), mode="edge")
    cell = spacing / 24 * (13 * (padded[:, 1:-2] + padded[:, 2:-1]) - padded[:, :-3] - padded[:, 3:])
    above = np.cumsum(cell[:, ::-1], axis=1)[:, ::-1]
    rest = _power(missing[:, None] + above, v - 1)  # others below g: 1 - (M - integral above g)
    mass = np.exp(np.minimum(x, 700.0)) * inner * rest
    return float(v * spacing * _STEP * mass.sum())
