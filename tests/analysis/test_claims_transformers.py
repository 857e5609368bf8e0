"""Verdicts on S11, against tables in which every effect is planted; what was not run decides nothing."""

import itertools
import json

import pandas as pd
import pytest

from analysis.claims.arms import add_arms, elsewhere
from analysis.claims.capping import restored
from analysis.claims.findings import Findings
from analysis.claims.runs import tuned_transformers
from analysis.claims.sizes import Grid, capped, little_effect
from analysis.claims.sources import Tables
from analysis.claims.transformers import judge_transformers, main
from analysis.lab.provenance import made_here
from analysis.lab.tables import write_table
from analysis.study.from_scratch.predictions import LANGUAGES

FURTHER = ("b=0 T=0.5", "b=0.1 T=0.5", "b=0 T=0.25", "b=0.1 T=0.25")
GRID = Grid((256, 4096, 65536), (16, 256))
SIZES = tuple(itertools.product(*GRID))


def planted(
    *,
    arms=("b=0", "b=0.1"),
    narrow_confidence=0.0,  # of D = 16 minus D = 256, over the truth's own
    narrow_divergence=0.3,
    large_confidence=0.0,  # of V above 256
    large_divergence=0.0,
    large_tuned=0.0,  # nats of live symbols after tuning, beside those before
    fall_share=0.8,  # of the fall over b (confidence - 1/V)
    narrow_share=0.0,
    large_share=0.0,
    gain=0.05,
    dead=True,
    dead_share=0.0,
    activity=0.5,
):
    """Rows of three seeds with these effects, each a little different from seed to seed."""
    rows = []
    kinds = [("live", *size) for size in SIZES] + [("dead", *size) for size in SIZES[2:]] * dead
    for (symbols, v, d), seed, method, epoch, distribution in itertools.product(
        kinds, range(3), arms, (0, 2, 16), ("train", "broad", "shifted")
    ):
        if epoch == 0 and method != "b=0":
            continue
        noise, b = 1e-3 * (seed - 1), 0.1 if "b=0.1" in method else 0.0
        small, large, live = d == 16, v > 256, symbols == "live"
        share = 1.0 + narrow_confidence * small + (large_confidence * large if live else dead_share * large) + noise
        confidence = 0.6 * share
        fall = fall_share + narrow_share * small + large_share * large + noise
        error = 0.05 + 0.01 * epoch + noise - 1e-3 * arms.index(method) - gain * (b > 0) * epoch / 16
        lowered = b * (confidence - 1 / v) * fall if epoch else 0.0
        rows.append({
            "key": f"{symbols}{v}{d}{seed}", "vocab_size": v, "hidden_size": d, "symbols": symbols, "tied": False,
            "distinct": 0, "pretraining_smoothing": 0.0, "data_seed": seed, "model_seed": 1000 + seed,
            "converged": True, "method": method, "label_smoothing": b, "epoch": epoch, "distribution": distribution,
            "reading": "as_trained", "confidence": confidence - lowered, "accuracy": 0.55, "true_ece": error,
            "aurc": 0.3, "rms": error, "true_nll": 1.0 + noise, "nll": 1.0, "validation_nll": 1.0 - 0.01 * epoch,
            "truth_confidence": 0.6, "activity": activity + noise, "effective_rank": 3.0 + b + noise + 0.01 * arms.index(method),
            "smallest_share": 0.1, "divergence": 0.1 + narrow_divergence * small
            + (large_divergence + large_tuned * (epoch > 0)) * large * live + noise, "gain_fall_0.1": 0.05,
        })  # fmt: skip
    return pd.DataFrame(rows)


def judged(table, tmp_path):
    made = made_here("python -m analysis.study run S11", config={}, seeds=[0], wall_seconds=0.0)
    write_table(table, tmp_path / "S11.csv", made)
    return judge_transformers(Tables([tmp_path]), "full").verdicts.set_index("claim")


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ({}, "refuted"),  # no step anywhere
        ({"narrow_confidence": -0.1}, "refuted"),  # less confident, and further from the truth: underfitting
        ({"narrow_confidence": -0.1, "narrow_divergence": 0.0}, "depends on"),  # a cap of D, none of V
        (
            {"narrow_confidence": -0.1, "narrow_divergence": 0.0, "large_confidence": -0.1},
            "depends on",
        ),  # not dead ones
        (
            {"narrow_confidence": -0.1, "narrow_divergence": 0.0, "large_confidence": -0.1, "dead_share": -0.1},
            "supported",
        ),
        ({"large_confidence": -0.1}, "depends on"),
        ({"large_confidence": -0.1, "large_divergence": 0.1}, "refuted"),  # confounded: dead tokens carry it
        ({"large_divergence": 0.1, "dead": False}, "not decided"),  # nothing left to compare
    ],
)
def test_k3(effects, word):
    found = Findings("K3")
    assert capped(planted(**effects), found, GRID) == word
    gate = found("divergence_over_v", V=4096, symbols="live")
    assert gate.mean == pytest.approx(effects.get("large_divergence", 0.0))


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ({}, "refuted"),
        ({"activity": 1.5}, "depends on"),
        ({"narrow_share": -0.5, "large_share": -0.3}, "supported"),
        ({"large_share": -0.3}, "depends on"),
        ({"narrow_share": -0.5}, "refuted"),  # narrow models fall less and are further from the truth
        ({"narrow_share": -0.7, "narrow_divergence": 0.0}, "depends on"),  # inert though they fit
        ({"fall_share": 0.0}, "depends on"),  # smoothing acts nowhere
        ({"large_share": -0.3, "large_tuned": 0.1, "dead": False}, "not decided"),  # confounded by tuning
        ({"large_share": -0.3, "large_divergence": 0.1, "dead": False}, "not decided"),
    ],
)
def test_k4(effects, word):
    found = Findings("K4")
    assert little_effect(planted(**effects), found, GRID) == word
    assert found("fall_share", V=256, D=256).mean == pytest.approx(effects.get("fall_share", 0.8), abs=1e-6)
    assert found("fall_gain_predicted", V=256, D=256).mean == pytest.approx(0.05)


WIDEST = "vocab_size == 65536 and hidden_size == 256"


@pytest.mark.parametrize("rule", [capped, little_effect])
@pytest.mark.parametrize(
    ("effects", "left_out"),
    [
        ({"large_divergence": 0.1}, "symbols == 'dead' and vocab_size == 65536"),
        ({}, "vocab_size == 65536"),
        ({}, f"symbols == 'live' and {WIDEST}"),
        ({"dead": False}, WIDEST),
        ({}, "hidden_size == 16"),
        ({}, "hidden_size == 256 and symbols == 'live' and vocab_size == 256"),
    ],
)
def test_without_the_ends_of_the_grid_nothing_is_decided(rule, effects, left_out):
    table = planted(**effects)
    assert rule(table.query(f"not ({left_out})"), Findings("K"), GRID) == "not decided"


@pytest.mark.parametrize("kept", ["symbols == 'dead'", "method == 'b=0'"])
def test_a_table_without_the_first_grid_or_an_arm_of_it_decides_nothing(kept, tmp_path):
    table = judged(planted().query(kept), tmp_path)
    assert set(table["verdict"]) == {"not decided"}
    assert table.loc["K3", "condition"].startswith("no row of the first grid has b=0")


def test_arms_that_were_not_run_decide_nothing(tmp_path):
    table = judged(planted(dead=False), tmp_path)
    assert table.index.tolist() == ["K1", "K2", "K3", "K4", "K5", "K6", "K8", "law"]
    words = {p.claim: p.verdict for p in LANGUAGES}
    assert table["predicted"].to_dict() == {claim: words[claim] for claim in table.index}
    assert table.loc[["K1", "K2"], "verdict"].tolist() == ["supported", "supported"]
    assert table.loc[["K5", "K6", "K8"], "verdict"].tolist() == ["not decided"] * 3
    assert table.loc["K1", "mean"] == pytest.approx(0.16, abs=2e-3)
    assert table.loc["K1", "early_verdict"] == ""  # one epoch by then
    assert table.loc["K2", "early_mean"] == pytest.approx(0.05 * 2 / 16, abs=2e-3)
    more = judged(planted(arms=("b=0", "b=0.1", *FURTHER), dead=False), tmp_path)
    assert more.loc["K5", "verdict"] == "depends on"  # smoothing acted: nothing to restore
    assert more.loc["K6", "verdict"] == "not decided"
    assert more.loc["K8", "verdict"] != "not decided"  # tunings at other T are without smoothing too


def test_arms_of_some_cells_are_set_beside_smoothing_there(tmp_path):
    """b = .1 gains .05 where b = .2 was run, which gains .03, and loses elsewhere."""
    table = planted(arms=("b=0", "b=0.1", "b=0.2"), dead=False).query("method != 'b=0.2' or vocab_size != 4096")
    table.loc[table["method"] == "b=0.2", "true_ece"] += 0.002 - 0.03
    table.loc[(table["method"] == "b=0.1") & (table["vocab_size"] == 4096), "true_ece"] += 0.15
    line = judged(table, tmp_path).loc["K2"]
    assert line["counter_evidence"].startswith("lowers the true ECE further: none;")
    assert "b=0.2 0.0300 [0.0300, 0.0300] (b = .1 there 0.0510 [" in line["condition"]


def test_further_arms_have_findings_of_their_own():
    """b = .2 takes .1 at the one size where it was run; models of little text are twice as sure, and fall as much."""
    table = planted(arms=("b=0", "b=0.1", "b=0.2", "b=0 frozen", "b=0.1 frozen"), dead=False)
    table = table.query("method in ('b=0', 'b=0.1') or (vocab_size == 256 and hidden_size == 16)").copy()
    table.loc[table["method"] == "b=0.2", "confidence"] -= 0.1
    few = table.query("method in ('b=0', 'b=0.1') and vocab_size == 256").assign(distinct=100)
    few["confidence"] *= 1 + (few["epoch"] == 0)
    found = Findings("K4")
    add_arms(pd.concat([table, few]), found)
    assert found("fall_of", method="b=0.2").mean == pytest.approx(0.1)
    here = 0.1 * (0.6 - 1 / 256) * 0.8
    assert found("fall_of", method="b=0.1").mean == pytest.approx(here)
    assert found("fall_of", method="b=0.1, gain frozen").mean == pytest.approx(here)
    assert found("share_of", kind="few", V=256, D=256).mean == pytest.approx(0.8)
    assert found("start_share_of", kind="few", V=256, D=16).mean == pytest.approx(2.0)
    assert found("start_error_of", kind="few", V=256, D=16).mean == pytest.approx(0.05)
    assert {made.cell["kind"] for made in found.at("share_of")} == {"few"}


def test_models_that_kept_falling_are_left_out_and_counted(tmp_path):
    table = planted()
    rows = table.assign(converged=~((table["vocab_size"] == 256) & (table["data_seed"] == 2)))
    assert judged(rows, tmp_path).loc["K1", "rows_left_out"] == f"{(~rows['converged']).sum()} of {len(rows)}"


def test_the_command_writes_verdicts_and_findings(tmp_path, capsys):
    judged(planted(dead=False), tmp_path)
    file = tmp_path / "S11_verdicts.csv"
    assert main(["--out", str(tmp_path), "--file", str(file)]) == 0
    assert "K1  supported" in capsys.readouterr().out
    assert {"verdict", "predicted", "preset"} <= set(pd.read_csv(file))
    assert set(pd.read_csv(tmp_path / "S11_findings.csv")["claim"]) >= {"K1", "K3", "K4"}
    assert json.loads((tmp_path / "S11_findings.json").read_text())["config"] == {"preset": "full"}
    assert main(["--out", str(tmp_path / "none"), "--file", str(file)]) == 2
    assert "there is no S11.csv in" in capsys.readouterr().err


def test_steps_over_v_after_two_epochs_and_shares_on_tokens_tuned_on_are_findings():
    table = planted()
    early = (table["epoch"] == 2) & (table["method"] == "b=0.1") & (table["vocab_size"] > 256)
    table.loc[early, "confidence"] -= 0.1 * 0.6 * 0.5  # half of what b asks for, at large V and at first only
    found = Findings("K4")
    little_effect(table, found, GRID)
    for symbols in ("dead", "live"):
        at = {"V": 65536, "symbols": symbols}
        assert found("fall_share_over_v_at_epoch_2", **at).mean == pytest.approx(0.5, abs=0.01)
        assert found("fall_share_over_v", **at).mean == pytest.approx(0.0, abs=0.01)
        assert found("tuned_divergence_over_v_at_epoch_2", **at).mean == pytest.approx(0.0, abs=1e-9)
    assert found("fall_share_on_train", V=256, D=16).mean == pytest.approx(0.8, abs=0.01)


def test_what_hidden_size_does_to_other_models_is_found_where_both_ends_are_there():
    """Tied models of D = 16 fall less by .3 and are nearer to the truth by .1; of little text one end is there."""
    table = planted(dead=False)
    tied = planted(narrow_share=-0.3, narrow_divergence=-0.1, dead=False).assign(tied=True)
    few = table.query("hidden_size == 16").assign(distinct=100)
    found = Findings("K4")
    add_arms(pd.concat([table, tied, few]), found)
    for name in ("share_step_of", "share_step_of_at_epoch_2"):
        assert found(name, kind="tied", V=4096).mean == pytest.approx(0.3, abs=1e-6)
        assert found(name, kind="tied").mean == pytest.approx(0.3, abs=1e-6)
        assert {made.cell["kind"] for made in found.at(name)} == {"tied"}
    assert found("nearness_step_of", kind="tied", V=65536).mean == pytest.approx(-0.1, abs=1e-6)
    assert found("nearness_step_of", kind="tied").cells == 3


def test_what_smoothing_does_to_text_that_was_not_tuned_on():
    found = Findings("K4")
    elsewhere(planted(dead=False).query("distribution == 'broad'"), "true_ece", found)
    at = {"V": 4096, "D": 256}
    assert found("fall_share_elsewhere", **at).mean == pytest.approx(0.8)
    assert found("excess_elsewhere_at_epoch_2", **at).mean == pytest.approx(0.6 - 0.55, abs=1e-3)
    assert found("gain_elsewhere_at_epoch_2", **at).mean == pytest.approx(0.05 * 2 / 16, abs=2e-3)
    assert found("gain_elsewhere", **at).mean == pytest.approx(0.05, abs=2e-3)


def test_what_of_a_step_in_confidence_accuracy_does_not_match():
    found = Findings("K3")
    capped(planted(narrow_confidence=-0.1), found, GRID)
    assert found("excess_step", V=4096).mean == pytest.approx(0.06)  # accuracy is the same at every D
    assert found("excess", V=256, D=256).mean == pytest.approx(0.05)


def test_a_temperature_is_set_beside_smoothing_in_the_cells_where_it_was_tuned():
    table = planted(arms=("b=0", "b=0.1", *FURTHER), dead=False)
    table = table.query("method in ('b=0', 'b=0.1') or vocab_size != 4096").copy()
    table.loc[(table["method"] == "b=0.1") & (table["vocab_size"] == 4096), "true_ece"] += 0.5
    found = Findings("K5")
    restored("temperature", (0.5, 0.25))(tuned_transformers(table), found)
    assert (found("gain").mean, found("gain").cells) == (pytest.approx(0.051), 4)  # .001 of the place among the arms
    plain, smoothed = (found("error", T="none", b=b).mean for b in (0, 0.1))
    assert plain - smoothed == pytest.approx(0.051)
