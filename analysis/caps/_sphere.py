"""Random directions on a sphere: the log of E exp(m t), t the cosine of two independent unit vectors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, hyp0f1, ive

# Debye polynomials U_k(p), highest power first (DLMF 10.41.10).
_DEBYE = (
    np.array([-5, 0, 3, 0]) / 24,
    np.array([385, 0, -462, 0, 81, 0, 0]) / 1152,
    np.array([-425425, 0, 765765, 0, -369603, 0, 30375, 0, 0, 0]) / 414720,
    np.array([185910725, 0, -446185740, 0, 349922430, 0, -94121676, 0, 4465125, 0, 0, 0, 0]) / 39813120,
)


def log_kernel_mean(m: NDArray[np.float64], d: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Log of the mean kernel A_D(m) over two random unit vectors.

    .. math:: A_D(m) = E\,e^{m t} = \Gamma(D/2)\,(2/m)^{D/2-1}\,I_{D/2-1}(m) = {}_0F_1(D/2;\ m^2/4)

    Three branches, since no single one holds everywhere: the series for moderate m, the scaled Bessel function for
    large m, and the uniform (Debye) expansion, DLMF 10.41.3, for order 30 and more, where the Bessel function
    underflows. Relative error of A below 1e-9 for m to 1e4 and D to 1e6.
    """
    m, d = np.broadcast_arrays(m, d)
    nu = d / 2 - 1
    small_order, small_m = nu < 30, m < 100
    series = np.log(hyp0f1(d / 2, np.where(small_order & small_m, m, 0.0) ** 2 / 4))
    x, order = np.where(small_m, 100.0, m), np.where(small_order, nu, 0.0)
    scaled = gammaln(order + 1) + order * np.log(2 / x) + np.log(ive(order, x)) + x
    n = np.where(small_order, 30.0, nu)
    z = m / n
    root = np.sqrt(1 + z * z)
    correction = 1 + sum(np.polyval(u, 1 / root) / n ** (k + 1) for k, u in enumerate(_DEBYE))
    # log[(nu/e)^nu Gamma(nu+1) / (nu^nu sqrt(2 pi nu))] and nu (eta - log(z/2) - 1), kept free of cancellation
    stirling = gammaln(n + 1) - n * np.log(n) + n - 0.5 * np.log(2 * np.pi * n)
    exponent = n * (z * z / (root + 1) - np.log1p((root - 1) / 2))
    uniform = stirling + exponent - 0.5 * np.log(root) + np.log(correction)
    return np.where(small_order, np.where(small_m, series, scaled), uniform)
