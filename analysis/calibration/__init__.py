"""Measuring calibration: binned errors, streaming states, known truths, selective prediction and recalibration."""

from ._errors import SortedError, calibration_error, sorted_rms_error
from ._intervals import ErrorInterval, NoiseFloor, wilson_interval
from ._state import CalibrationState, SignedError
from ._tables import reliability_table
from ._truth import TrueDecomposition, true_calibration_error, true_decomposition

__all__ = [
    "CalibrationState",
    "ErrorInterval",
    "NoiseFloor",
    "SignedError",
    "SortedError",
    "TrueDecomposition",
    "calibration_error",
    "reliability_table",
    "sorted_rms_error",
    "true_calibration_error",
    "true_decomposition",
    "wilson_interval",
]
