"""No function guesses what an argument means: bad input of every kind, through every public function of numbers."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from right_arguments import CALLS, ELSEWHERE

import analysis

FUNCTIONS = {
    name: value
    for module in map(analysis.__getattr__, analysis._PUBLIC)
    for name in module.__all__
    if inspect.isfunction(value := getattr(module, name))
}


def test_every_public_function_is_here():
    assert set(FUNCTIONS) == set(CALLS) | ELSEWHERE


# Arguments that may be as large or as small as they like.
UNBOUNDED = {
    ("gap_to_confidence", "gap"), ("match_moments", "weight"), ("smoothing_penalty", "logits"),
    ("fit_vector", "logits"), ("answer_confidence", "token_log_probability"), ("option_confidence", "log_probability"),
    ("clipped_fall", "activity_index"), ("rational_fall", "activity_index"),
}  # fmt: skip
FRACTIONAL = {"count", "counts", "samples"}  # occurrences may be weighted
# Values just outside of a range; a head of weighted_svd_head may have no feature at all.
TOO_SMALL = {"vocab_size": 1, "hidden_size": 0, "temperature": 0, "softcap": 0, "gain": 0, "row_std": 0}


def _spoiled(value: Any, unbounded: bool) -> list[Any]:
    """What looks like the value and is not."""
    array = np.asarray(value)
    floating = array.astype(float)
    bad: list[Any] = [
        "0.5", object(), [[1.0], [1.0, 2.0]], array.astype(str), array.astype(object) if array.ndim else {"a": 1},
        floating + 1j, np.ma.masked_array(array, np.zeros(array.shape, bool)), np.full(array.shape, np.nan),
        np.full(array.shape, "2020-01-01", "datetime64[D]"), torch.tensor(floating).to_sparse(),
    ]  # fmt: skip
    if array.dtype.kind != "b":
        bad += [np.full(array.shape, True)]
        bad += [] if unbounded else [np.full(array.shape, -1e9), np.full(array.shape, np.inf)]
    if array.dtype.kind == "i":
        bad += [array + 0.5, np.full(array.shape, -1)]
    return bad


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_number_of_the_kind_is_refused_by_name(name):
    function, arguments = FUNCTIONS[name], CALLS[name]
    names = "|".join(inspect.signature(function).parameters)
    for argument, value in arguments.items():
        known = argument in TOO_SMALL and name != "weighted_svd_head"
        edge = [np.full(np.shape(value), TOO_SMALL[argument])] if known else []
        for bad in (*_spoiled(value, (name, argument) in UNBOUNDED), *edge):
            if argument in FRACTIONAL and isinstance(bad, np.ndarray) and np.array_equal(bad, value + 0.5):
                continue
            with pytest.raises((TypeError, ValueError), match=rf"\b({names})\b.* must "):
                function(**{**arguments, argument: bad})


def _labelled(value: Any, index: list[int]) -> Any:
    if np.ndim(value) == 0:
        return value
    return pd.Series(value, index) if np.ndim(value) == 1 else pd.DataFrame(value, index)


@pytest.mark.parametrize("name", [n for n in CALLS if sum(np.ndim(x) in (1, 2) for x in CALLS[n].values()) > 1])
def test_pandas_objects_are_paired_by_label_or_not_at_all(name):
    if name in ("match_moments", "risk_at_coverage", "smooth_calibration_error"):  # not paired; relplot is optional
        return
    function, arguments = FUNCTIONS[name], CALLS[name]
    labels = list(range(max(len(x) for x in arguments.values() if np.ndim(x))))
    series = {argument: _labelled(x, labels[: len(np.atleast_1d(x))]) for argument, x in arguments.items()}
    assert repr(function(**series)) == repr(function(**arguments))
    *_, last = (argument for argument, x in arguments.items() if np.ndim(x))
    series[last] = _labelled(arguments[last], labels[: len(arguments[last])][::-1])
    with pytest.raises(ValueError, match=rf"{last} must have \w+'s index, got another: .*reindex"):
        function(**series)
