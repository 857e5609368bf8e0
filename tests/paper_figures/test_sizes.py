"""The figure on sizes shows the falls of its table over what smoothing asks for."""

import pandas as pd
import pytest

from paper_figures import response, sizes, tables


def test_points_are_the_falls_over_what_smoothing_asks_for(drawn, at):
    table = tables.read("S11", "quick", tables.DATA / "quick")
    rows = table.query("vocab_size == 64 and hidden_size == 4 and distribution == 'shifted' and epoch == 16")
    rows = rows.loc[rows["reading"] == "as_trained"].set_index(["data_seed", "method"])["confidence"].unstack()
    share = ((rows["b=0"] - rows["b=0.1"]) / (0.1 * (rows["b=0"] - 1 / 64))).mean()
    _, found, figure = drawn("sizes", "quick")
    left, right = figure.axes
    assert len(rows) == 3
    assert (pytest.approx(4, rel=0.1), pytest.approx(share, rel=1e-4)) in at(left)  # lines stand side by side
    assert (pytest.approx(64, rel=0.1), pytest.approx(share, rel=1e-4)) in at(right)
    assert len(found) == 4


def test_models_that_kept_falling_are_left_out():
    table = tables.read("S11", "quick", tables.DATA / "quick")
    kept = sizes.prepare({"S11": table.assign(converged=table["hidden_size"] == 4)})
    assert set(kept["hidden_size"]) == {4}


def test_what_cannot_be_compared_is_hollow_and_dead_tokens_have_a_line(at):
    table = tables.read("S11", "quick", tables.DATA / "quick")
    dead = table.loc[table["vocab_size"] == 64].assign(symbols="dead")
    least = table.loc[table["vocab_size"] == 16].set_index(
        ["hidden_size", "data_seed", "method", "epoch", "distribution", "reading"]
    )
    keys = dead[list(least.index.names)].apply(tuple, axis=1)
    dead["divergence"] = least["divergence"].reindex(keys).to_numpy()  # as near to the truth as at V = 16
    found = sizes.prepare({"S11": pd.concat([table, dead])})
    lines = found.set_index(["symbols", "vocab_size", "hidden_size"])["comparable"]
    assert lines["live", 16, 16]
    assert not lines["live", 64, 16]
    assert lines["dead", 64, 16]
    left, right = sizes.make(found, preset="quick").axes
    share = found.set_index(["symbols", "vocab_size", "hidden_size"])["share"]
    assert (pytest.approx(64, rel=0.2), pytest.approx(share["dead", 64, 16])) in at(right)
    faces = [mark.get_markerfacecolor() for container in left.containers for mark in container.lines[:1]]
    assert sorted(face == "white" for face in faces) == [False, True]  # a line for each V


def test_every_mean_is_inside_the_axis_however_large():
    table = sizes.prepare({"S11": tables.read("S11", "full", tables.DATA)})
    assert table["share"].max() > 2
    for ax in sizes.make(table, preset="full").axes:
        low, high = ax.get_ylim()
        assert table["share"].between(low, high - 0.1).all()


def test_dead_tokens_that_are_not_comparable_are_pale_and_said_to_be():
    found = sizes.prepare({"S11": tables.read("S11", "full", tables.DATA)})
    dead = (found["symbols"] == "dead") & (found["vocab_size"] > found["vocab_size"].min())
    said, colours = {}, {}
    for alike in (False, True):
        right = sizes.make(found.assign(comparable=~dead | alike), preset="full").axes[1]
        said[alike] = any("pale: not comparable over" in text.get_text() for text in right.texts)
        marks = [mark for container in right.containers for mark in container.lines[:1] if mark.get_marker() == "x"]
        colours[alike] = {mark.get_color() for mark in marks}
    assert said == {False: True, True: False}
    assert colours == {False: {"0.75"}, True: {"0.5"}}


def test_what_the_response_says_of_transformers_is_drawn_beside_what_smoothing_took():
    models = pd.DataFrame({
        "vocab_size": 16, "hidden_size": 4, "data_seed": [0, 0, 0, 1, 1], "model_seed": [0, 0, 0, 1, 1],
        "method": ["b=0", "b=0.1", "b=0.2", "b=0", "b=0.1"], "confidence": [0.6, 0.55, 0.5, 0.7, 0.69],
        "activity": 0.5, "frozen_fall_0.1": [0.08, None, None, 0.03, None], "frozen_fall_0.2": [0.2] + 4 * [None],
        "distribution": "train", "epoch": 16, "converged": True,
    })  # fmt: skip
    others = [models.assign(**change, confidence=9.0) for change in ({"epoch": 2}, {"distribution": "shifted"})]
    unfit = models.assign(converged=False, hidden_size=8)
    drawn = response._scratch(pd.concat([models, *others, unfit])).set_index("label_smoothing")
    assert drawn["predicted"].to_dict() == pytest.approx({0.1: 0.055, 0.2: 0.2})
    assert drawn["fall"].to_dict() == pytest.approx({0.1: 0.03, 0.2: 0.1})
    share = {0.1: 0.1 * (0.65 - 1 / 16) * 0.5, 0.2: 0.2 * (0.6 - 1 / 16) * 0.75}  # A is stated at b = 0.1
    assert drawn["clipped"].to_dict() == pytest.approx(share)
