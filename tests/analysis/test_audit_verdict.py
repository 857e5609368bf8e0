"""The verdict and the figure of an audit, both from its table alone."""

import math

import pandas as pd
import pytest
import torch
from full_logits import close, plain, tokens_of
from matplotlib.figure import Figure
from tiny_models import V, make

from analysis.audit import audit_model, draw_audit, verdict
from analysis.audit._panels import reliability_of
from analysis.audit._verdict import Lookup
from analysis.calibration import reliability_table
from analysis.command import committed_folder


@pytest.mark.parametrize(
    ("scale_gap", "index", "expected"),
    [
        ((-0.3, -0.4, -0.2), (-0.2, -0.3, -0.1), ("is over-confident", "below 1", "the right way here")),
        ((0.3, 0.2, 0.4), (0.4, 0.3, 0.5), ("is under-confident", "below 1", "the wrong way here")),
        ((0.0, -0.1, 0.1), (0.0, -0.1, 0.1), ("as confident as it should be", "away from where")),
        (
            (3.0, 2.9, 3.1),
            (1.9, 1.8, 2.0),
            ("is under-confident", "above 1", "would not act", "targets and unfinished"),
        ),
        ((1.0, 0.5, 1.5), (0.9, 0.7, 1.1), ("cannot tell whether",)),
    ],
)
def test_the_verdict_says_what_the_numbers_say(scale_gap, index, expected):
    model = make()
    table = audit_model(model, tokens_of(model), label_smoothing=(0.1,)).table.set_index(["part", "name"])
    table.loc[("prediction", "scale_gap"), ["value", "low", "high"]] = scale_gap
    table.loc[("smoothing", "activity"), ["value", "low", "high"]] = index
    for name in ("confidence", "accuracy"):  # as good as each other, and no error: the scale decides
        table.loc[("prediction", name), ["value", "low", "high"]] = (0.5, 0.4, 0.6)
    table.loc[("calibration", "ece"), ["value", "low", "high"]] = 0.0
    text = verdict(table.reset_index())
    for words in expected:
        assert words in text


@pytest.mark.parametrize(
    ("scale_gap", "accuracy", "said"),
    [
        (-0.3, 0.48, "slightly over-confident (by 0.020):"),
        (0.3, 0.54, "slightly under-confident (by 0.040):"),
        (-0.3, 0.4, "is over-confident:"),
        (-0.3, 0.52, "is over-confident by one measure and under-confident by the other:"),
    ],
)
def test_the_verdict_calls_a_little_little(scale_gap, accuracy, said):
    table = pd.read_csv(committed_folder() / "audit_smollm2.csv")
    for name, value in (("scale_gap", scale_gap), ("confidence", 0.5), ("accuracy", accuracy)):
        table.loc[table["part"].eq("prediction") & table["name"].eq(name), ["value", "low", "high"]] = value
    assert said in verdict(table)


def test_a_text_worse_than_uniform_tokens_has_no_activity_index():
    """Both losses want smaller logits then, and smoothing pulls the other way than it does elsewhere."""
    model = make()
    tokens = tokens_of(model, 16, 2)
    with torch.no_grad():
        tokens[:, 1] = model(tokens).logits[:, 0].argmin(-1)
    found = audit_model(model, tokens, label_smoothing=(0.1, 0.3))
    get, want = Lookup(found.table), plain(model, tokens)
    assert want["uniform"].mean() < want["nll"].mean()
    assert get("smoothing", "activity", "0.1").value == -math.inf
    for b in (0.1, 0.3):
        slope = (1 - b) * (want["entropy"] - want["nll"]).mean() + b * (want["entropy"] - want["uniform"]).mean()
        close(get("smoothing", "slope", str(b)), slope)
        assert (want["entropy"] - want["nll"]).mean() < slope < 0  # smaller logits, less so than without smoothing
    (line,) = [line for line in found.verdict.splitlines() if line.startswith("Smoothing.")]
    assert line.startswith("Smoothing. No activity index:")
    assert "weakens the pull of the data" in line
    assert "below 1" not in line
    assert "above 1" not in line


def test_a_temperature_at_its_bound_is_called_so():
    model = make()
    random = torch.randint(3, V, (8, 12), generator=torch.Generator().manual_seed(0))
    assert "The temperature that fits best is beyond 20;" in audit_model(model, random).verdict


def test_the_figure_and_its_reliability_table_come_from_the_table_alone():
    model = make()
    tokens = tokens_of(model, 40)
    table, want = audit_model(model, tokens).table, plain(model, tokens)
    again = pd.read_csv(__import__("io").StringIO(table.to_csv(index=False)))
    expected = reliability_table(want["confidence"], want["correct"])
    pd.testing.assert_frame_equal(reliability_of(again), expected, check_dtype=False, atol=1e-5)
    figure = Figure()
    axes = figure.subplots(2, 2).ravel().tolist()
    draw_audit(again, axes)
    assert [axis.get_xlabel() for axis in axes] == ["confidence", "confidence gap (nats)", "label smoothing b", "fifth of the tokens"]  # fmt: skip
    heights = [line.get_ydata()[0] for line in axes[2].lines if line.get_marker() in "o^s"]
    assert heights == [Lookup(again)("smoothing", "activity", b).value for b in ("0.05", "0.1", "0.2")]
    asked = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes[1].lines if line.get_marker() in "o^s"]
    gaps = [Lookup(again)("smoothing", "asked_gap", b).value for b in ("0.05", "0.1", "0.2")]
    assert asked == list(zip(gaps, [1, 2, 3], strict=True))  # on lines of their own, as they are close to each other
    assert [label.get_text() for label in axes[1].get_yticklabels()][:3] == [
        "tokens",
        "asked, b = 0.05",
        "asked, b = 0.1",
    ]
    with pytest.raises(ValueError, match="axes must be four, got 1"):
        draw_audit(again, axes[:1])
    with pytest.raises(ValueError, match="it is no table of an audit"):
        verdict(pd.DataFrame(columns=["part", "name", "group", "value", "low", "high", "text"]))
