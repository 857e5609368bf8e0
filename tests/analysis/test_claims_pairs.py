"""Verdicts on real models tuned on pairs, from tables made by hand."""

import pandas as pd
import pytest
import torch
from tuned_pairs import made

from analysis.claims.findings import Findings
from analysis.claims.pairs import PAIR_CLAIMS, judge_pairs, small_hidden_size, tuned_pairs
from analysis.real_tuning import main
from analysis.study.real_tuning.pair_tables import essential
from analysis.study.real_tuning.predictions import PAIR_PREDICTIONS


@pytest.fixture(scope="module")
def table():
    return made()


@pytest.fixture(scope="module")
def judged(table):
    return words(table)


def words(table):
    return judge_pairs(table, PAIR_PREDICTIONS).verdicts.set_index("claim")


def test_every_claim_has_a_line_with_numbers_and_what_was_predicted(judged):
    table = judged
    assert table.index.tolist() == list(PAIR_CLAIMS)
    assert table["verdict"].to_dict() == {
        "K1": "supported", "K2": "depends on", "K4": "refuted", "K8": "refuted", "K9": "supported",
    }  # fmt: skip
    assert table.loc["K4", "predicted"] == "refuted"
    assert table.loc["K4", "mean"] == pytest.approx(0.08)
    assert table.loc["K4", "early_mean"] == pytest.approx(0.02)
    assert "at V = 262144" in table.loc["K4", "condition"]
    assert "exceeds accuracy by 0.16" in table.loc["K4", "condition"]
    assert "early stopping" in table.loc["K2", "condition"]
    assert table.loc["K8", "early_verdict"] == ""
    text = table[["effect", "condition", "counter_evidence"]].to_numpy().ravel()
    assert not any("nan" in sentence or "not known" in sentence for sentence in text)


def test_inertness_at_the_whole_vocabulary_would_support_the_paper():
    def word(**falls):
        table = made(**falls)
        return small_hidden_size(table, tuned_pairs(table), Findings("K4"))

    assert word(fall=0.002) == "supported"
    assert word(fall=0.03, cut_fall=0.09) == "supported"  # it shrinks
    assert word(fall=0.07, cut_fall=0.09) == "refuted"


def test_the_short_table_gives_the_same_verdicts(table, judged):
    short = essential(table)
    assert len(short) < len(table)
    pd.testing.assert_frame_equal(words(short), judged)


def test_a_model_of_one_vocabulary_has_its_fall_alone(table):
    table, found = table.loc[table["within"].isna()], Findings("K4")
    assert small_hidden_size(table, tuned_pairs(table), found) == "refuted"
    assert not found.has("fall_at")


def test_runs_that_are_missing_are_named(table):
    with pytest.raises(ValueError, match="must hold runs of tier 1 on all documents, got none"):
        tuned_pairs(table.loc[table["within"].notna()])
    with pytest.raises(ValueError, match=r"must hold all runs of tier 1; K2 lacks some"):
        judge_pairs(table.loc[(table["label_smoothing"] == 0) | table["within"].notna()], PAIR_PREDICTIONS)


def test_the_command_writes_verdicts_and_findings(table, tmp_path, capsys):
    table.to_csv(tmp_path / "tier.csv", index=False)
    assert main(["verdicts", str(tmp_path / "tier.csv"), str(tmp_path / "real_verdicts.csv")]) == 0
    assert "K4  refuted" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "real_verdicts.csv")["claim"].tolist() == list(PAIR_CLAIMS)
    assert "shrinks" in set(pd.read_csv(tmp_path / "real_findings.csv")["finding"])
    table.drop(columns="ece").to_csv(tmp_path / "tier.csv", index=False)
    assert main(["verdicts", str(tmp_path / "tier.csv"), str(tmp_path / "real_verdicts.csv")]) == 2
    assert "is no table of the tier 1: it has no column or row 'ece'" in capsys.readouterr().err


def test_the_confidence_that_a_penalty_asks_for_is_where_its_gradient_is_0():
    """What SECOND_TIER rests on: -log p - gamma H over one target and V - 1 equal others, V = 262144."""
    others = torch.tensor(262144.0 - 1, dtype=torch.float64)
    for gamma, confidence in ((0.05, 0.9995), (0.2, 0.4124)):
        asked = torch.tensor(1 / (gamma * confidence), dtype=torch.float64)
        for gap, sign in ((asked - 0.1, -1), (asked + 0.1, 1)):
            gap.requires_grad_()
            p = torch.sigmoid(gap - others.log())
            entropy = -p * p.log() - (1 - p) * ((1 - p) / others).log()
            (-p.log() - gamma * entropy).backward()
            assert gap.grad is not None
            assert float(gap.grad) * sign > 0
        assert float(torch.sigmoid(asked - others.log())) == pytest.approx(confidence, abs=1e-3)
