"""States fed by head_statistics equal those fed with softmaxes of full float64 logits."""

import numpy as np
import pytest
import torch
from helpers import problem

from analysis.calibration import CalibrationState, frequency_groups, from_statistics
from kernel import head_statistics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_state_of_full_softmaxes(dtype):
    args = problem(600, 50, 12, ignored=0.2)
    low = args.to(dtype)
    shape = (20, 30)
    stats = head_statistics(
        low.input.reshape(*shape, 12), low.linear_weight, args.target.reshape(shape), temperatures=(0.3, 2.0)
    )
    group = torch.arange(600).reshape(shape) % 2
    state = CalibrationState(groups=["even", "odd"])
    assert from_statistics(stats, temperature_index=1, group=group, state=state) is state

    p = torch.softmax(args.input @ args.linear_weight.T / 2, -1)
    kept = args.target >= 0
    best = p.max(-1)
    right = best.indices == args.target
    nll = -p.log().gather(-1, args.target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    expected = CalibrationState(groups=["even", "odd"])
    expected.update(best.values[kept], right[kept], group.reshape(-1)[kept], nll=nll[kept])
    assert state.n == expected.n == kept.sum()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert state.accuracy == expected.accuracy
    assert state.nll == pytest.approx(expected.nll, abs=tolerance)
    for name in state.groups:
        ours, theirs = state.select(name), expected.select(name)
        assert ours.n == theirs.n
        assert ours.mean_confidence == pytest.approx(theirs.mean_confidence, abs=tolerance)
        if dtype == torch.float64:
            assert ours.calibration_error() == pytest.approx(theirs.calibration_error(), abs=1e-12)


def test_saturated_confidences_stay_in_order():
    # In float32 every confidence is 1; the margin still separates right from wrong.
    hidden = torch.linspace(20, 60, 200).unsqueeze(-1)
    weight = torch.tensor([[1.0], [0.0]])
    target = (torch.arange(200) < 100).long()  # small margins are wrong
    stats = head_statistics(hidden, weight, target)
    assert (stats.confidence == 1).float().mean() > 0.9
    state = from_statistics(stats)
    assert state.reliability_table(binning="quantile", n_bins=2)["accuracy"].tolist() == pytest.approx([0, 1], abs=0.01)


def test_refusals():
    args = problem(4, 5, 3)
    without = head_statistics(args.input, args.linear_weight)
    stats = head_statistics(args.input, args.linear_weight, args.target)
    with pytest.raises(ValueError, match="statistics must be made with a target"):
        from_statistics(without)
    with pytest.raises(ValueError, match=r"temperature_index must be in \[0, 1\), got 1"):
        from_statistics(stats, temperature_index=1)
    with pytest.raises(ValueError, match=r"group must have the tokens' shape \(4,\), got \(3,\)"):
        from_statistics(stats, group=[0, 0, 0])


def test_frequency_groups_share_the_occurrences():
    counts = np.random.default_rng(0).permutation(1000 / np.arange(1, 20_001))
    groups = frequency_groups(counts)
    shares = np.bincount(groups, counts, minlength=10) / counts.sum()
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.05)
    order = np.argsort(counts)
    assert (np.diff(groups[order]) >= 0).all()
    assert frequency_groups([0, 0, 5]).tolist() == [0, 0, 5]
    for bad in ([0, 0], [-1, 3], [np.nan, 1]):
        with pytest.raises(ValueError, match="counts must be finite, at least 0 and not all 0"):
            frequency_groups(bad)
    with pytest.raises(ValueError, match=r"counts must have shape \(V,\)"):
        frequency_groups([[1, 2]])
