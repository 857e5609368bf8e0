"""Smooth calibration error through relplot, an optional dependency."""

from __future__ import annotations

from typing import Any, cast

from ..checks import pip_install
from ._inputs import pairs


def smooth_calibration_error(confidence: Any, correct: Any) -> float:
    """Measure the calibration error by a kernel regression that chooses its own bandwidth (smooth ECE); no bins.

    Args:
        confidence: Any shape, in [0, 1].
        correct: Whether the predictions were right, of the same shape.

    Returns:
        The error, a fraction.

    Raises:
        ImportError: If relplot is not installed.
        TypeError: If an argument has the wrong type.
        ValueError: As :func:`calibration_error`.

    References:
        Błasiok, Nakkiran, "Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing", 2023. arXiv:2309.12236
    """
    c, y = pairs(confidence, correct)
    try:
        import relplot  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"smooth_calibration_error needs relplot: {pip_install('calibration')}") from error
    return float(cast(float, relplot.smECE(c, y.astype(float))))
