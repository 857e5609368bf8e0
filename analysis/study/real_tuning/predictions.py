"""What was expected of the claims on a real model, written before the first run of the full preset."""

from __future__ import annotations

from ...lab.registry import Prediction

__all__ = ["PREDICTIONS"]

PREDICTIONS = (
    Prediction(
        claim="K1",
        verdict="supported",
        statement="Tuning without smoothing raises the ECE on ordinary text above that of the model before tuning; on "
        "new questions it falls while the format is learnt and grows from epoch 1 to the last.",
    ),
    Prediction(
        claim="K2",
        verdict="depends on",
        statement="At the last epoch b = .1 has a lower ECE on new questions than b = 0, and a temperature fitted "
        "afterwards lowers that of b = 0 at least as far; on ordinary text b = .1 changes the ECE by less than .02.",
    ),
    Prediction(
        claim="K5",
        verdict="depends on",
        statement="Norms are free and smoothing acts at T = 1 already: training at T = .5 or 2 changes the gain of "
        "smoothing in ECE, read as trained, by less than .02.",
    ),
    Prediction(
        claim="K6",
        verdict="depends on",
        statement="A cap of 30 or 15 changes the gain of smoothing in ECE by less than .02.",
    ),
    Prediction(
        claim="K8",
        verdict="not decided",
        statement="No expectation: measure the effective rank of the features on new questions against b.",
    ),
    Prediction(
        claim="K9",
        verdict="supported",
        statement="b = .1 changes the accuracy on new questions by less than .02 and narrows the gap between held-out "
        "and training NLL, at the last epoch.",
    ),
)
