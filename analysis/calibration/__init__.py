"""Measuring calibration: binned errors, streaming states, known truths, selective prediction and recalibration.

Arrays are paired by position. Two pandas objects must have one index; beside a list or an array, which have none, a
Series or DataFrame is taken in the order in which it stands, whatever its index says.
"""

from ._binning import uniform_index
from ._errors import SortedError, calibration_error, sorted_rms_error
from ._from_statistics import frequency_groups, from_statistics
from ._head_temperature import fit_head_temperature
from ._intervals import ErrorInterval, NoiseFloor, wilson_interval
from ._options import OptionConfidence, answer_confidence, option_confidence
from ._recalibration import (
    IsotonicMap,
    PlattMap,
    VectorMap,
    fit_isotonic,
    fit_platt,
    fit_vector,
    unsmooth_confidence,
)
from ._scores import score_against_truth, score_predictions
from ._selective import RiskCoverage, SelectiveScores, risk_at_coverage, risk_coverage_curve, selective_scores
from ._smooth import smooth_calibration_error
from ._state import CalibrationState, SignedError
from ._tables import reliability_table
from ._temperature import TemperatureFit, fit_temperature
from ._truth import TrueDecomposition, binned_true_error, tied_accuracy, true_calibration_error, true_decomposition

__all__ = [
    "CalibrationState",
    "ErrorInterval",
    "IsotonicMap",
    "NoiseFloor",
    "OptionConfidence",
    "PlattMap",
    "RiskCoverage",
    "SelectiveScores",
    "SignedError",
    "SortedError",
    "TemperatureFit",
    "TrueDecomposition",
    "VectorMap",
    "answer_confidence",
    "binned_true_error",
    "calibration_error",
    "fit_head_temperature",
    "fit_isotonic",
    "fit_platt",
    "fit_temperature",
    "fit_vector",
    "frequency_groups",
    "from_statistics",
    "option_confidence",
    "reliability_table",
    "risk_at_coverage",
    "risk_coverage_curve",
    "score_against_truth",
    "score_predictions",
    "selective_scores",
    "smooth_calibration_error",
    "sorted_rms_error",
    "tied_accuracy",
    "true_calibration_error",
    "true_decomposition",
    "uniform_index",
    "unsmooth_confidence",
    "wilson_interval",
]
