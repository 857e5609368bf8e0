"""How calibrated predictions in files are: tables with confidence or logits, samples of lm-evaluation-harness.

On the command line ``python -m analysis.reliability``. All numbers come from :mod:`analysis.calibration`.
"""

from ._files import BadRow
from ._measure import ReliabilityScores, describe, measure_predictions
from ._panels import draw_predictions
from ._read import PredictionFiles, Predictions, read_predictions

__all__ = [
    "BadRow",
    "PredictionFiles",
    "Predictions",
    "ReliabilityScores",
    "describe",
    "draw_predictions",
    "measure_predictions",
    "read_predictions",
]
