"""Errors of checked arguments say what is allowed and what came, once each; every function's are in test_inputs."""

import re

import numpy as np
import pytest

from analysis import caps, smoothing
from analysis.checks import distribution, interval, real, require_broadcast, whole


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: caps.gap_to_confidence(np.nan, 4), ValueError, "gap must not be NaN, got nan."),
        (lambda: caps.gap_to_confidence(1.0, 1), ValueError, "vocab_size must be finite and at least 2, got 1."),
        (lambda: caps.gap_to_confidence(1.0, 2.5), ValueError, "vocab_size must be a whole number, got 2.5."),
        (lambda: caps.gap_to_confidence([1, 2], [4, 5, 6]), ValueError, "got the shapes gap (2,), vocab_size (3,)."),
        (lambda: caps.confidence_to_gap(1.5, 4), ValueError, "confidence must be in [0, 1], got 1.5."),
        (
            lambda: caps.simplex_cap("5", 4),
            TypeError,
            "norm_product must be a real number or an array of them, got '5'.",
        ),
        (lambda: caps.simplex_cap(-1, 4), ValueError, "norm_product must be finite and at least 0, got -1."),
        (
            lambda: caps.max_gap(1, 4, temperature=0),
            ValueError,
            "temperature must be finite and greater than 0, got 0.",
        ),
        (lambda: caps.max_gap(1, 4, softcap=[[1, 2]], temperature=[1, 2, 3]), ValueError, "softcap (1, 2)"),
        (lambda: smoothing.optimal_gap(0, 4), ValueError, "label_smoothing must be in (0, 1], got 0."),
        (lambda: smoothing.unsmooth([0.5, 0.5], 1), ValueError, "label_smoothing must be in [0, 1), got 1."),
        (lambda: smoothing.smooth([0.5, 0.6], 0.1), ValueError, "must sum to 1 over its last axis, got a sum of 1.1."),
        (
            lambda: smoothing.smooth(0.5, 0.1),
            ValueError,
            "probabilities must have shape (..., vocab_size), got the shape ().",
        ),
        (
            lambda: smoothing.activity_index(1, 1, np.inf, 0.1),
            ValueError,
            "uniform_cross_entropy must be finite, got inf.",
        ),
    ],
)
def test_error_names_the_argument_the_range_and_the_value(call, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_ragged_input_is_a_type_error():
    with pytest.raises(TypeError, match=re.escape("x must be a real number or an array of them, got [[1], [1, 2]].")):
        real("x", [[1], [1, 2]])


def test_long_values_are_cut():
    with pytest.raises(ValueError, match=r"x must be in \(0, 1\], got \[0, 0.*\.\.\.\.$") as caught:
        interval("x", [0] * 1000, 0, 1, open_low=True)
    assert len(str(caught.value)) < 130


def test_accepted_inputs_become_float64():
    assert interval("x", np.float32(0.5), 0, 1).dtype == np.float64
    assert whole("x", np.arange(2, 5, dtype=np.int32), 2).tolist() == [2.0, 3.0, 4.0]
    assert require_broadcast(a=np.zeros((3, 1)), b=np.zeros(4)) == (3, 4)
    assert distribution("p", np.full((2, 3), 1 / 3, np.float32)).shape == (2, 3)


def test_the_input_array_is_never_the_output():
    given = np.array([0.5, 0.5])
    real("x", given)[0] = 7.0
    assert given.tolist() == [0.5, 0.5]
