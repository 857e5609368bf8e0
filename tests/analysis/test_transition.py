"""Below full rank: the activity index, measured or predicted from the shape, against trained heads."""

import csv
import re

import numpy as np
import pytest

from analysis import smoothing, transition_table
from analysis.command import committed_folder
from analysis.norm_ball import fit_norm_ball

COMMITTED = committed_folder() / "transition.csv"


@pytest.fixture(scope="module")
def table():
    with COMMITTED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}


def test_the_committed_table_has_every_head(table):
    assert len(table["norm_product"]) == len(transition_table.SHAPES) * len(transition_table.RATIOS) == 144


def test_the_committed_table_is_what_the_code_makes(table):
    fresh = list(transition_table.rows(shapes=transition_table.SHAPES[:2]))
    for i, row in enumerate(fresh):
        for name, value in row.items():
            assert table[name][i] == pytest.approx(value, rel=0.02, abs=0.003), (i, name)


def mistakes(table, below):
    """Heads on the wrong side of the prediction "smoothing acts", of those with D < log V."""
    acts = np.abs(table["confidence_plain"] - table["confidence_smoothed"]) > 0.002
    return {
        name: int(((table[name] > 1 if name.endswith("ratio") else table[name] < 1) != acts)[below].sum())
        for name in ("effectiveness_ratio", "rank_ratio", "activity_index", "predicted_activity")
    }


def test_the_index_settles_the_transition_and_rho_does_not(table):
    low_rank = table["hidden_size"] < np.log(table["vocab_size"])
    wrong = mistakes(table, low_rank)
    assert low_rank.sum() == 72
    assert wrong["activity_index"] <= 2
    assert wrong["predicted_activity"] <= 3
    assert wrong["effectiveness_ratio"] >= 10
    assert wrong["rank_ratio"] >= 10


def test_the_prediction_is_the_measurement_near_the_transition(table):
    near = (table["activity_index"] > 0.5) & (table["activity_index"] < 2)
    ratio = (table["predicted_activity"] / table["activity_index"])[near]
    assert near.sum() > 50
    assert np.abs(ratio - 1).max() < 0.05


@pytest.mark.parametrize("b", [0.05, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_prediction_holds_for_other_smoothing_and_temperature(b, temperature):
    m = temperature * np.array([5.0, 8.0])
    plain = fit_norm_ball(24, 4, m, temperature=temperature)
    index = smoothing.activity_index(plain.entropy, plain.cross_entropy, plain.uniform_cross_entropy, b)
    assert smoothing.predicted_activity(m, 24, 4, b, temperature=temperature) == pytest.approx(index, rel=0.06)


@pytest.mark.parametrize(("v", "d"), [(100, 8), (7, 3), (48, 12)])
def test_the_prediction_holds_for_other_shapes(v, d):
    m = smoothing.optimal_gap(0.1, v) * np.array([0.7, 1.0, 1.25])
    plain = fit_norm_ball(v, d, m, restarts=1, steps=400)
    index = smoothing.activity_index(plain.entropy, plain.cross_entropy, plain.uniform_cross_entropy, 0.1)
    assert smoothing.predicted_activity(m, v, d, 0.1) == pytest.approx(index, rel=0.1)


@pytest.mark.parametrize("vocab_size", [2, 5, 300])
def test_at_full_width_the_prediction_is_closed(vocab_size):
    m = np.array([2.0, 6.0, 10.0])
    exact = (
        (1 - 1 / (1 + (vocab_size - 1) * np.exp(-m * vocab_size / (vocab_size - 1)))) * vocab_size / (vocab_size - 1)
    )
    predicted = smoothing.predicted_activity(m, vocab_size, vocab_size, 0.1)
    assert predicted == pytest.approx(exact / 0.1, rel=1e-3)
    crossing = smoothing.optimal_gap(0.1, vocab_size) * (vocab_size - 1) / vocab_size
    assert smoothing.predicted_activity(0.99 * crossing, vocab_size, vocab_size, 0.1) > 1
    assert smoothing.predicted_activity(1.02 * crossing, vocab_size, vocab_size, 0.1) < 1


def test_the_prediction_is_finite_and_falls_with_the_norm_at_language_model_sizes():
    values = smoothing.predicted_activity([5.0, 10.0, 14.0, 20.0, 60.0, 500.0], 128_256, 2048, 0.1)
    assert np.all(np.isfinite(values))
    assert np.all(np.diff(values) <= 1e-12)
    assert values[1] > 1 > values[3]


def test_prediction_errors():
    with pytest.raises(ValueError, match=re.escape("norm_product must be finite and greater than 0, got 0.")):
        smoothing.predicted_activity(0, 4, 2, 0.1)
    with pytest.raises(
        ValueError, match=re.escape("hidden_size must be at least 2 where vocab_size is above 2, got 1.")
    ):
        smoothing.predicted_activity(1, 3, 1, 0.1)
    with pytest.raises(ValueError, match=re.escape("label_smoothing must be in (0, 1], got 0.")):
        smoothing.predicted_activity(1, 4, 2, 0)


def test_the_command_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transition_table, "rows", lambda: iter([{"vocab_size": 4, "activity_index": 1.23456789}]))
    transition_table.main([str(tmp_path / "new" / "t.csv")])
    assert (tmp_path / "new" / "t.csv").read_text() == "vocab_size,activity_index\n4,1.23457\n"
    assert "1 rows" in capsys.readouterr().out
