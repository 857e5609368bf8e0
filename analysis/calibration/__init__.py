"""Measuring calibration: binned errors, streaming states, known truths, selective prediction and recalibration."""

from ._errors import SortedError, calibration_error, sorted_rms_error
from ._from_statistics import frequency_groups, from_statistics
from ._intervals import ErrorInterval, NoiseFloor, wilson_interval
from ._selective import RiskCoverage, SelectiveScores, risk_at_coverage, risk_coverage, selective_scores
from ._state import CalibrationState, SignedError
from ._tables import reliability_table
from ._temperature import TemperatureFit, fit_head_temperature, fit_temperature
from ._truth import TrueDecomposition, true_calibration_error, true_decomposition

__all__ = [
    "CalibrationState",
    "ErrorInterval",
    "NoiseFloor",
    "RiskCoverage",
    "SelectiveScores",
    "SignedError",
    "SortedError",
    "TemperatureFit",
    "TrueDecomposition",
    "calibration_error",
    "fit_head_temperature",
    "fit_temperature",
    "frequency_groups",
    "from_statistics",
    "reliability_table",
    "risk_at_coverage",
    "risk_coverage",
    "selective_scores",
    "sorted_rms_error",
    "true_calibration_error",
    "true_decomposition",
    "wilson_interval",
]
