"""Verdicts of the study: what the rules find in the committed tables, and in tables that were changed to say otherwise."""

from pathlib import Path

import pandas as pd
import pytest

import paper_figures
from analysis.claims.capping import restores
from analysis.claims.effects import difference, paired_effects
from analysis.claims.findings import COLUMNS, Findings, headlines
from analysis.claims.judging import CLAIMS, MODEL_CLAIMS, decide, judge
from analysis.claims.report import STATEMENTS, number
from analysis.claims.sources import MissingTableError, Tables
from analysis.claims.statistics import Effect, mean_effect
from analysis.lab.tables import read_table
from analysis.study.__main__ import main

DATA = Path(paper_figures.__file__).parent / "data"


class Given(dict):
    """Tables by name; what is not given is not there."""

    __call__ = dict.__getitem__
    has = dict.__contains__


def s5(folder=DATA / "quick", query="converged"):
    return read_table(folder / ("S5.csv" if folder.name == "quick" else "S5.csv.gz")).query(query)


@pytest.fixture(scope="module")
def judged():
    return judge(Tables([DATA / "quick"], shared=DATA), "quick")


@pytest.fixture(scope="module")
def table(judged):
    return judged.verdicts.set_index("claim")


class TestVerdicts:
    def test_every_claim_has_a_line_with_effect_condition_and_counter_evidence(self, table):
        assert list(table.index) == list(CLAIMS) == list(STATEMENTS) == [f"K{i}" for i in range(1, 10)]
        decided = table.drop(index="K7")
        assert set(decided["verdict"]) <= {"supported", "refuted", "depends on"}
        assert decided[["low", "high", "condition", "counter_evidence", "tables"]].notna().all(axis=None)
        assert (decided["low"] <= decided["mean"]).all()
        assert (decided["mean"] <= decided["high"]).all()
        assert (table["preset"] == "quick (preliminary)").all()
        assert ((table["depends_on"] != "") == (table["verdict"] == "depends on")).all()

    def test_they_are_the_committed_ones(self, table):
        committed = pd.read_csv(DATA / "quick" / "verdicts.csv").set_index("claim")
        words = ["verdict", "statement", "finding"]
        assert committed[words].to_dict() == table[words].to_dict()
        numbers = ["mean", "low", "high"]
        pd.testing.assert_frame_equal(committed[numbers], table[numbers].astype(float), atol=1e-4)

    def test_what_was_not_run_refutes_nothing(self):
        table = s5()
        contraction = table["softcap"].isna() | (table["softcap_form"] == "contraction")
        contraction &= table["evaluation"] != "cap 4 gain"
        few, one_seed = table[(table["norm"] == "budget") & contraction], table[table["data_seed"] == 0]
        assert decide("K6", Given(S5=few))[0].verdict == "not decided"
        assert decide("K5", Given(S5=one_seed))[0].verdict == "not decided"

    def test_quick_verdicts_read_no_full_table_but_that_of_the_kernel(self, tmp_path):
        (tmp_path / "kernel.csv").write_text("x\n1\n")  # what a figure drew, in the same folder
        tables = Tables([tmp_path], shared=DATA)
        assert "mode" in tables("kernel")
        with pytest.raises(MissingTableError, match=r"there is no S1\.csv"):
            tables("S1")

    def test_k1_by_hand(self, table):
        rows = read_table(DATA / "quick" / "S7.csv").query(
            "converged and method == 'b=0' and distribution == 'broad' and reading == 'as_trained'"
        )
        ece = rows.pivot_table(index=["vocab_size", "hidden_size", "data_seed"], columns="epoch", values="true_ece")
        assert table.loc["K1", "mean"] == pytest.approx((ece[32] - ece[0]).mean(), abs=1e-5)

    def test_flagged_rows_are_left_out_and_counted(self, tmp_path):
        rows = read_table(DATA / "quick" / "S7.csv")
        bad = rows["data_seed"] == 0
        rows.assign(converged=~bad, true_ece=rows["true_ece"].where(~bad, 1e6)).to_csv(tmp_path / "S7.csv", index=False)
        tables = Tables([tmp_path])
        size = decide("K1", tables)[0].size
        assert size.seeds == 2
        assert size.mean < 1
        assert tables.left_out == {"S7": (int(bad.sum()), len(rows))}

    def test_reversed_data_reverse_the_verdict(self):
        """Every verdict can fail: calibration that improves with tuning refutes K1."""
        rows = read_table(DATA / "quick" / "S7.csv")
        verdict, _ = decide("K1", Given(S7=rows.assign(true_ece=0.5 - rows["true_ece"])))
        assert (verdict.verdict, verdict.depends_on) == ("refuted", "")

    def test_the_cap_is_judged_at_every_c_and_never_over_their_mean(self):
        """A gain at one c and as large a harm at another is no cap that restores, nor one that does nothing."""
        table = s5()
        chosen = (
            (table["softcap_form"] == "contraction") & (table["norm"] == "budget") & (table["label_smoothing"] == 0)
        )
        before, _ = decide("K6", Given(S5=table.copy()))
        for c, change in ((2, 0.2), (20, -0.2)):
            rows = chosen & (table["softcap"] == c) & (table["evaluation"] == "plain")
            table.loc[rows, ["true_ece", "confidence"]] += change
        after, found = decide("K6", Given(S5=table))
        assert "budget, in training only" not in before.counter_evidence
        assert "budget, in training only" in after.counter_evidence
        where = {"form": "contraction", "norms": "budget", "way": "in training only"}
        rises = {rise.cell["c"]: rise for rise in found.at("fall_rise", **where)}
        assert rises[2].low > 0.01
        assert rises[20].high < -0.01
        assert "(restores at c = 2 at V = 256, lowers it at c = 20 at V = 256)" in after.condition
        assert (after.verdict, after.depends_on) == ("depends on", "form, norms and c")

    def test_harm_that_disappears_is_no_effect_restored(self):
        """A gain that rises while smoothing takes less confidence, as at c = 2, or that stays below 0, restores nothing."""
        table = s5()
        plain = (table["norm"] == "budget") & (table["label_smoothing"] == 0) & (table["softcap"] == 2)
        plain &= table["evaluation"] == "plain"
        for column in ("true_ece", "confidence"):  # either alone
            changed = table.assign(**{column: table[column] + 0.2 * plain})
            assert "budget, in training only" not in decide("K6", Given(S5=changed))[0].counter_evidence
        verdict, found = decide("K6", Given(S5=s5(DATA)))
        kept = {"form": "contraction", "norms": "budget", "way": "kept", "c": 2.0}
        assert found.at("rise", **kept)[0].low > 0.004  # what had been called a rise
        assert found.at("gain", **kept)[0].high < 0.002
        assert found.at("fall_rise", **kept)[0].high < 0
        assert verdict.size is not None
        assert verdict.size.high < 0

    def test_restore_means_the_same_of_a_temperature_and_of_a_cap(self):
        """Under weight decay the gain of a cold head rises and its fall does not: no effect is restored."""
        verdict, found = decide("K5", Given(S5=s5(DATA)))
        decay = {"arm": "weight decay"}
        assert found("rise", **decay).low > 0.02
        assert found("gain", **decay).low > 0
        assert abs(found("fall_rise", **decay).mean) < 0.01
        assert "; restores: budget, Adam under the budget. " in verdict.condition
        assert restores(found, found("fall_rise", arm="budget"))
        assert not restores(found, found("fall_rise", **decay))
        assert "cold and smoothed is no better than plain at T = 1 in 4 of 5 arms" in verdict.counter_evidence
        table = s5(DATA)
        at_one = (table["temperature"] == 1) | (table["label_smoothing"] == 0)
        as_much = table["confidence"].where(at_one, table["confidence"] + 0.05)  # cold heads fall by .05 less
        assert decide("K5", Given(S5=table.assign(confidence=as_much)))[0].verdict == "refuted"

    def test_inert_pairs_are_counted_by_setting_too(self):
        verdict, found = decide("K4", Tables([DATA], shared=DATA))
        rows = read_table(DATA / "S3.csv.gz").query("teacher == 'det' and converged")
        setting = ["vocab_size", "hidden_size", "norm_coefficient", "temperature", "softcap", "softcap_form"]
        pairs = paired_effects(rows).query("activity_index > 1.25")
        assert found["pairs_inert"] == len(pairs) == 355
        by_hand = pairs[[*setting, "label_smoothing"]].drop_duplicates()
        assert found["settings_inert"] == len(by_hand) == 71
        assert "355 inert ones of 71 (335 of 355 at V = 256)" in verdict.counter_evidence
        assert "|fall| < 0.01" in verdict.condition

    def test_a_cell_of_k3_has_one_temperature_and_the_largest_step_is_in_the_headline(self):
        full = Tables([DATA], shared=DATA)
        verdict, found = decide("K3", full)
        steps = found.at("step_from_64")
        assert len(steps) == verdict.size.cells == 8
        assert verdict.size.mean == pytest.approx(sum(step.mean for step in steps) / 8)
        assert f"D = 64 minus D = 16: up to {max(step.mean for step in found.at('step_from_16')):.3f}" in verdict.effect

    def test_confidence_over_vocabularies_is_a_share_of_the_saturated_heads(self):
        _, found = decide("K3", Tables([DATA], shared=DATA))
        ceiling = {f.cell["V"]: f.mean for f in found.at("saturated_confidence")}
        assert ceiling[256] == pytest.approx(0.482, abs=1e-3)
        assert ceiling[32768] == pytest.approx(0.306, abs=1e-3)
        for share, own in zip(found.at("confidence_share"), found.at("confidence"), strict=True):
            assert share.mean == pytest.approx(own.mean / ceiling[own.cell["V"]], rel=0.02)

    def test_tunings_are_judged_at_two_epochs_too(self):
        rows = read_table(DATA / "quick" / "S7.csv").query("converged")
        others = {name: read_table(DATA / "quick" / f"{name}.csv") for name in ("S4", "S5", "S6")}
        for claim in ("K1", "K2", "K8", "K9"):
            verdict, found = decide(claim, Given(S7=rows, **others))
            short, _ = decide(claim, Given(S7=rows.query("epoch <= 2 or reading == 'post_hoc'"), **others))
            assert verdict.early_size.mean == short.size.mean != verdict.size.mean
            assert found(f"{verdict.size.finding}_at_epoch_2").mean == short.size.mean
            assert verdict.early in {"supported", "refuted", "depends on"}
        assert decide("K5", Given(S5=s5()))[0].early == ""

    def test_intervals_say_what_varies_in_them(self, table):
        over = table["interval_over"].to_dict()
        assert {claim for claim, what in over.items() if what == "first values of the solver"} == {"K3", "K4"}
        assert {what for claim, what in over.items() if claim not in ("K3", "K4", "K7")} == {"seeds"}

    def test_a_trunk_is_judged_under_each_norm_apart(self):
        """K5 reads the trunk under the budget alone; other norms change nothing there."""
        table = s5(DATA)
        shifted = table["true_ece"].where((table["norm"] == "budget") | (table["label_smoothing"] > 0), 0.9)
        before, after = (decide("K5", Given(S5=rows))[1] for rows in (table, table.assign(true_ece=shifted)))
        under, free = {"arm": "trunk under the budget"}, {"arm": "trunk with free norms"}
        assert before("rise", **under).mean == after("rise", **under).mean  # of one seed: it has no interval
        assert (before("rise", **under).seeds, before["seeds_run"]) == (1, 5)
        assert before("rise", **free) != after("rise", **free)

    def test_harm_without_over_fitting_and_sizes_without_effect_are_conditions(self):
        """K2 and K8 are supported only where no table and no size speaks against them."""
        full = Tables([DATA], shared=DATA)
        rows = Given({name: full(name) for name in ("S4", "S5", "S6", "S7")})
        assert decide("K2", rows)[0].verdict == decide("K8", rows)[0].verdict == "depends on"
        harmless = Given(rows)
        for name in ("S4", "S6"):
            smoothed = rows[name]["label_smoothing"] > 0
            harmless[name] = rows[name].assign(true_ece=rows[name]["true_ece"].mask(smoothed, 0.0))
        assert decide("K2", harmless)[0].verdict == "supported"
        s7 = rows["S7"]
        # diverse where the error is low, in every method and size
        assert decide("K8", Given(S7=s7.assign(effective_rank=10 - 10 * s7["true_ece"])))[0].verdict == "supported"
        assert decide("K8", Given(S7=s7.assign(effective_rank=10 * s7["true_ece"])))[0].verdict == "refuted"

    def test_a_confidence_penalty_stands_beside_its_rivals_and_moves_no_other_number(self):
        full = Tables([DATA], shared=DATA)
        rows = Given({name: full(name) for name in ("S4", "S5", "S6", "S7")})
        s5, s7 = rows["S5"], rows["S7"]
        others = s7["method"].str.startswith("penalty=")
        without = Given(rows, S5=s5.loc[s5["confidence_penalty"] == 0], S7=s7.loc[~others])
        for claim in ("K1", "K2", "K5", "K6", "K8", "K9"):
            found, before = decide(claim, rows)[1].listed, decide(claim, without)[1].listed
            kept = [f for f in found if "penal" not in f.finding]
            assert [str(f) for f in kept] == [str(f) for f in before if "penal" not in f.finding]
            assert (len(kept) < len(found)) == (claim == "K2")
        beside = {f.cell["method"]: f for f in decide("K2", rows)[1].at("gain_beside_penalty")}
        end = s7.query(
            "vocab_size == 1024 and hidden_size == 64 and epoch == 32 and distribution == 'shifted' "
            "and reading == 'as_trained'"
        )
        error = end.groupby("method")["true_ece"].mean()
        assert {"early stopping", "b=0 post_hoc", "b=0.1", "penalty=0.05", "penalty=0.2"} <= set(beside)
        for method in ("b=0.1", "penalty=0.2"):
            assert beside[method].mean == pytest.approx(error["b=0"] - error[method])
            assert beside[method].cells == 1

    def test_without_tables_nothing_is_decided(self, tmp_path):
        judged = judge(Tables([tmp_path]), "full")
        assert set(judged.verdicts["verdict"]) == {"not decided"}
        assert judged.verdicts["condition"].str.contains("there is no").all()
        assert judged.findings.empty
        with pytest.raises(MissingTableError, match=r"^there is no S3\.csv in "):
            Tables([tmp_path])("S3")

    def test_the_command_writes_them_with_their_findings(self, tmp_path, capsys, judged):
        file = tmp_path / "verdicts.csv"
        assert main(["verdicts", "--preset", "quick", "--out", str(DATA / "quick"), "--file", str(file)]) == 0
        assert len(pd.read_csv(file)) == 9
        assert len(pd.read_csv(tmp_path / "findings.csv")) == len(judged.findings)
        assert "K1" in capsys.readouterr().out


class TestFindings:
    @pytest.mark.parametrize("name", ["", "quick/", "instruction_"])
    def test_every_verdict_is_about_one_finding_and_the_table_is_tidy(self, name):
        verdicts, findings = (pd.read_csv(DATA / f"{name}{kind}.csv") for kind in ("verdicts", "findings"))
        assert tuple(findings.columns) == COLUMNS
        assert not findings.duplicated(["claim", "finding", "cell"]).any()
        assert (
            set(findings["claim"]) == set(verdicts["claim"]) == set(CLAIMS if name != "instruction_" else MODEL_CLAIMS)
        )
        both = headlines(verdicts, findings)
        assert both["unit"].notna().all()
        for column in ("mean", "low", "high", "seeds", "cells"):
            assert both[column].tolist() == pytest.approx(verdicts[column].tolist(), abs=1e-5, rel=1e-5)
        intervals = findings.dropna(subset="low")
        assert (intervals["low"] <= intervals["mean"]).all()
        assert (intervals["mean"] <= intervals["high"]).all()

    def test_a_finding_is_asked_for_by_its_name_and_cell(self):
        found = Findings("K1")
        found.add("gain", Effect(0.2, 0.1, 0.3, 5, 2), "ECE")
        found.add("gain", Effect(0.4, 0.3, 0.5, 5, 1), "ECE", V=256, norm=0.5)
        found.add("count", 3, "count")
        assert found("gain").mean == 0.2
        assert [f.where for f in found.at("gain")] == ["V=256; norm=0.5"]
        assert found.at("gain", V=64) == []
        assert found["count"] == 3
        with pytest.raises(LookupError, match=r"K1 has no finding gain at \{'V': 64\}"):
            found("gain", V=64)


def test_a_pair_must_be_one_row_each():
    table = pd.DataFrame({"b": [0, 0, 1], "x": [1.0, 2.0, 3.0], "seed": [1, 1, 1]})
    with pytest.raises(ValueError, match="on must tell the rows of one b apart"):
        difference(table, "x", column="b", first=0, second=1, on=["seed"])


class TestUnfinished:
    def test_an_effect_without_rows_is_not_known(self):
        effect = mean_effect(pd.DataFrame({"x": [], "cell": [], "data_seed": []}), "x", cell=["cell"])
        assert (effect.cells, str(effect)) == (0, "not known (no rows)")
        assert number(float("nan"), ".2f") == "not known"

    @pytest.mark.parametrize(("rows", "word"), [((), "not decided"), ((1.0, 2.0), "supported")])
    def test_a_claim_that_no_cell_decides_is_not_decided(self, rows, word, monkeypatch, tmp_path):
        frame = pd.DataFrame({"x": rows, "cell": [0 for _ in rows], "data_seed": range(len(rows))})

        def rule(tables, found):
            found.add("gap_fall", mean_effect(frame, "x", cell=["cell"]), "nats")
            for name in ("accuracy_loss", "held_out_fall"):
                found.add(name, 0.0, "nats")
            for method in ("weight_decay", "dropout"):
                found.add("gap_fall_of", 0.0, "nats", method=method)
            return "supported"

        monkeypatch.setitem(CLAIMS, "K9", CLAIMS["K9"]._replace(rule=rule))
        (tmp_path / "S7.csv").touch()
        tables = Tables([tmp_path], not_run={"S7": (3, 7)})
        monkeypatch.setattr("analysis.claims.judging.CLAIMS", {"K9": CLAIMS["K9"]})
        line = judge(tables, "full").verdicts.iloc[0]
        assert (line["verdict"], line["cells_not_run"]) == (word, "3 of 7")
        assert line["mean"] == pytest.approx(1.5) if rows else pd.isna(line["mean"])
