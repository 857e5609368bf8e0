"""Measuring calibration: binned errors, streaming states, known truths, selective prediction and recalibration."""

from ._errors import SortedError, calibration_error, sorted_rms_error
from ._truth import TrueDecomposition, true_calibration_error, true_decomposition

__all__ = [
    "SortedError",
    "TrueDecomposition",
    "calibration_error",
    "sorted_rms_error",
    "true_calibration_error",
    "true_decomposition",
]
