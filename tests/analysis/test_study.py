"""Grids, paired effects and the command; and what the theory says of every row of the committed quick tables."""

import dataclasses
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import paper_figures
from analysis.bottleneck import FitConfig
from analysis.caps import gap_to_confidence, max_gap, simplex_cap
from analysis.records import config_key
from analysis.smoothing import optimal_gap
from analysis.study.effects import CELL, cell_effects, paired_effects
from analysis.study.grids import smoothing_at_gap
from analysis.study.registry import EXPERIMENTS, PRESETS, experiment, experiments

DATA = Path(paper_figures.__file__).parent / "data" / "quick"


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(DATA / "S3.csv")


@pytest.fixture(scope="module")
def pairs(rows):
    return paired_effects(rows)


class TestGrids:
    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_configs_are_different_and_every_smoothed_head_has_a_twin(self, name, preset):
        configs = experiment(name).configs(preset)
        assert len({config_key(config) for config in configs}) == len(configs)
        heads = [config for config in configs if isinstance(config, FitConfig)]
        plain = {config for config in heads if config.label_smoothing == 0}
        twins = {dataclasses.replace(config, label_smoothing=0.0) for config in heads if config.label_smoothing}
        assert plain == twins

    @pytest.mark.parametrize(("preset", "least"), [("quick", 3), ("full", 5)])
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_every_cell_has_its_seeds(self, name, preset, least):
        seeds = {}
        for config in experiment(name).configs(preset):
            if isinstance(config, FitConfig):
                teacher = dataclasses.replace(config.teacher, seed=0)
                cell, seed = dataclasses.replace(config, teacher=teacher, seed=0), config.teacher.seed
                if config.teacher.vocab_size == (1024 if preset == "quick" else 262144):  # the largest, one seed
                    continue
            else:
                cell, seed = dataclasses.replace(config, seed=0), config.seed
                if getattr(config, "model", ""):  # bounds of public shapes: nothing is random
                    continue
            seeds.setdefault(cell, set()).add(seed)
        assert min(map(len, seeds.values())) >= least

    def test_full_holds_the_cube_of_the_design(self):
        configs = experiment("S3").configs("full")
        cube = {
            (c.hidden_size, c.teacher.vocab_size, c.norm_coefficient, c.temperature, c.label_smoothing, c.seed)
            for c in configs
            if c.teacher.kind == "lowrank" and c.softcap is None and c.norm_coefficient in (0.05, 0.1, 0.2)
            and c.label_smoothing in (0, 0.1, 0.2) and c.teacher.vocab_size in (256, 4096, 32768)
            and c.temperature in (1, 0.5, 0.25)
        }  # fmt: skip
        assert len(cube) >= 5 * 3 * 3 * 3 * 3 * 5
        assert {c.hidden_size for c in configs if c.teacher.vocab_size == 262144} >= {1024}

    def test_the_gap_is_held_where_v_varies(self):
        for v in (64, 512, 262144):
            assert optimal_gap(smoothing_at_gap(9.0, v), v) == pytest.approx(9.0)

    def test_predictions_name_claims_and_every_experiment_has_one(self):
        claims = {p.claim for study in experiments(["all"]) for p in study.predictions}
        assert claims == {f"K{i}" for i in range(1, 10)} - {"K7"}
        assert all(study.predictions for study in experiments(["all"]))

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match=r"^name must be one of \('S1', .*'S7'\), got 'S8'\.$"):
            experiment("S8")

    def test_names_come_once_and_in_order(self):
        assert [study.name for study in experiments(["S3", "S1", "S3"])] == ["S1", "S3"]


class TestEffects:
    def test_pairs_and_signs(self, rows, pairs):
        assert len(pairs) == (rows["label_smoothing"] > 0).sum()
        query = "teacher == 'lowrank' and hidden_size == 64 and temperature == 0.25 and vocab_size == 256"
        one, same = pairs.query(query), rows.query(query)
        for seed in range(3):
            plain, smoothed = (same.query(f"data_seed == {seed} and label_smoothing == {b}").iloc[0] for b in (0, 0.1))
            effect = one.query(f"data_seed == {seed}").iloc[0]
            assert effect["confidence_fall"] == plain["confidence"] - smoothed["confidence"]
            assert effect["true_ece_gain"] == plain["true_ece"] - smoothed["true_ece"]
            assert effect["accuracy_gain"] == smoothed["accuracy"] - plain["accuracy"]
            assert effect["activity_index"] == pytest.approx(plain["activity_index"])  # the plain head's, at b = .1

    def test_missing_values_match_before_and_after_a_csv(self, rows):
        fresh = rows.astype({"softcap": object})
        fresh["softcap"] = fresh["softcap"].where(fresh["softcap"].notna(), None)
        again = pd.read_csv(StringIO(fresh.to_csv(index=False)))
        one, two = paired_effects(fresh), paired_effects(again)
        assert one["confidence_fall"].tolist() == two["confidence_fall"].tolist()
        assert cell_effects(one)["seeds"].tolist() == cell_effects(two)["seeds"].tolist()

    def test_cells_leave_out_what_has_not_converged(self, pairs):
        cells = cell_effects(pairs)
        assert cells["seeds"].sum() == pairs["converged"].sum()
        fewer = cell_effects(pairs.assign(converged=pairs["converged"] & (pairs.index != pairs.index[0])))
        assert fewer["seeds"].sum() == cells["seeds"].sum() - 1
        assert (cells["confidence_fall_low"] <= cells["confidence_fall"] + 1e-12).all()
        assert (cells["confidence_fall"] <= cells["confidence_fall_high"] + 1e-12).all()

    def test_three_seeds_span_the_interval(self, pairs):
        cells = cell_effects(pairs).set_index([*CELL, "label_smoothing"])
        key, group = next(iter(pairs.groupby([*CELL, "label_smoothing"], dropna=False)))
        cell = cells.loc[[key]].iloc[0]
        assert (cell["activity_index_low"], cell["activity_index_high"]) == (
            group["activity_index"].min(),
            group["activity_index"].max(),
        )

    def test_what_cannot_be_paired_is_refused(self, rows):
        with pytest.raises(ValueError, match="different configs, got one twice"):
            paired_effects(pd.concat([rows, rows.head(1)]))
        with pytest.raises(ValueError, match="got none"):
            paired_effects(rows.query("label_smoothing == 0"))


class TestTheoryInTheTables:
    def test_all_rows_are_there_and_s3_converged(self, rows):
        for name in EXPERIMENTS:
            keys = {config_key(config) for config in experiment(name).configs("quick")}
            assert set(pd.read_csv(DATA / f"{name}.csv")["key"]) == keys
            assert json.loads((DATA / f"{name}.json").read_text())["failed"] == {}
        assert rows["converged"].all()

    def test_c1_where_it_is_exact(self, rows):
        exact = rows.query("teacher == 'det' and hidden_size >= vocab_size - 1 and softcap.isna()")
        assert len(exact) >= 36
        v, b = exact["vocab_size"], exact["label_smoothing"]
        gap = max_gap(exact["norm_coefficient"] * exact["hidden_size"], v, temperature=exact["temperature"])
        wanted = np.where(b > 0, optimal_gap(np.where(b > 0, b, 1.0), v), np.inf)
        predicted = gap_to_confidence(np.minimum(gap, wanted), v)
        assert np.abs(exact["confidence"] - predicted).max() < 0.01

    def test_on_the_simplex_the_fall_is_linear_in_the_index(self, pairs):
        """C4: A = (1 - p) V / (b (V - 1)), so that the fall is b (V - 1) / V max(0, 1 - A)."""
        exact = pairs.query("teacher == 'det' and hidden_size >= vocab_size - 1 and softcap.isna()")
        v, b = exact["vocab_size"], exact["label_smoothing"]
        predicted = b * (v - 1) / v * np.maximum(0, 1 - exact["activity_index"])
        assert np.abs(exact["confidence_fall"] - predicted).max() < 0.01

    def test_no_row_exceeds_a2(self, rows):
        det = rows.query("teacher == 'det' and softcap.isna()")
        cap = simplex_cap(det["norm_coefficient"] * det["hidden_size"] / det["temperature"], det["vocab_size"])
        float32 = 1e-6  # rounding of the training's norms
        assert (det["min_target_probability"] <= cap + float32).all()
        assert (det["confidence"] <= cap + float32).all()
        assert (det["cross_entropy"] >= -np.log(cap) - float32).all()

    def test_searched_ceilings_stay_below_the_proven_ones(self):
        table = pd.read_csv(DATA / "S1.csv")
        found = table[table["attained_gap"].notna()]
        assert len(found) >= 150
        assert (found["attained_gap"] <= found["simplex_gap"] + 1e-9).all()
        assert (found["attained_gap"] <= found["rank_gap"] + 1e-9).all()
        full_rank = found[found["hidden_size"] >= found["vocab_size"] - 1]
        np.testing.assert_allclose(full_rank["attained_gap"], full_rank["simplex_gap"], rtol=1e-9)

    def test_random_logits_agree_with_the_exact_expectations(self):
        table = pd.read_csv(DATA / "S2.csv")
        scores = np.concatenate(
            [(table[n] - table[f"{n}_exact"]) / table[f"{n}_error"] for n in ("entropy", "confidence", "participation")]
        )
        assert np.abs(scores).max() < 4.5  # of 216 deviates, skewed at few contexts
        assert 0.5 < scores.std() < 1.6

    def test_det_rules_of_the_index(self, pairs):
        det = pairs.query("teacher == 'det'")
        inert, acting = det[det["activity_index"] > 1.25], det[det["activity_index"] < 0.8]
        assert min(len(inert), len(acting)) >= 30
        assert (inert["confidence_fall"].abs() < 0.01).mean() >= 0.95
        assert (acting["confidence_fall"] > 0).mean() >= 0.95

    def test_det_smoothing_is_inert_below_rho_09(self, pairs):
        inert = pairs.query("teacher == 'det' and effectiveness_ratio < 0.9")
        assert len(inert) >= 20
        assert inert["confidence_fall"].abs().max() <= 0.01

    def test_population_heads_have_the_entropy_of_their_loss(self):
        """D3 at b = 0; and smoothing a head that is wide enough costs b (E max p - 1/V), D2."""
        table = pd.read_csv(DATA / "S6.csv")
        plain = table[(table["label_smoothing"] == 0) & table["converged"]]
        assert (plain["entropy"] - plain["cross_entropy"]).abs().max() < 1e-3
        wide = table[(table["label_smoothing"] > 0) & (table["hidden_size"] > table["rank"])]
        assert len(wide) >= 6
        assert np.abs(wide["confidence"] - wide["best_accuracy"] + wide["smoothed_ece_predicted"]).max() < 0.01


@pytest.mark.parametrize(
    ("name", "column", "tolerance", "count"),
    [("S1", "attained_gap", 1e-6, 2), ("S2", "entropy", 1e-4, 1), ("S3", "confidence", 2e-3, 4),
     ("S4", "confidence", 5e-3, 2), ("S5", "confidence", 5e-3, 2), ("S6", "confidence", 2e-3, 2)],
)  # fmt: skip
def test_rows_can_be_made_again(name, column, tolerance, count):
    """Rows of the cheap end of each table, chosen by a fixed seed, on this machine."""
    study, table = experiment(name), pd.read_csv(DATA / f"{name}.csv")
    searched = [config for config in study.configs("quick") if not getattr(config, "model", "")]
    cheap = sorted(searched, key=lambda config: study.seconds(config, "cpu"))
    cheap = [c for c in cheap if config_key(c) in set(table.loc[table["converged"], "key"])][: max(12, len(cheap) // 4)]
    for index in np.random.default_rng(0).choice(len(cheap), count, replace=False):
        row = study.compute(cheap[index])
        again = [line[column] for line in row["measurements"]] if "measurements" in row else [row[column]]
        stored = table.loc[table["key"] == config_key(cheap[index]), column]
        np.testing.assert_allclose(again, stored, atol=tolerance, rtol=1e-5)
