"""The figure on sizes shows the falls of its table over what smoothing asks for."""

import pytest

from paper_figures import sizes, tables


def test_points_are_the_falls_over_what_smoothing_asks_for(drawn, at):
    table = tables.read("S11", "quick", tables.DATA)
    rows = table.query("vocab_size == 64 and hidden_size == 4 and distribution == 'shifted' and epoch == 16")
    rows = rows.loc[rows["reading"] == "as_trained"].set_index(["data_seed", "method"])["confidence"].unstack()
    share = ((rows["b=0"] - rows["b=0.1"]) / (0.1 * (rows["b=0"] - 1 / 64))).mean()
    _, found, figure = drawn("sizes", "quick")
    left, right = figure.axes
    assert len(rows) == 3
    assert (4, pytest.approx(share, rel=1e-4)) in at(left)
    assert (64, pytest.approx(share, rel=1e-4)) in at(right)
    assert len(found) == 4


def test_models_that_kept_falling_are_left_out():
    table = tables.read("S11", "quick", tables.DATA)
    kept = sizes.prepare({"S11": table.assign(converged=table["hidden_size"] == 4)})
    assert set(kept["hidden_size"]) == {4}
