"""Grids, paired effects and the command; and what the theory says of every row of the committed quick tables."""

import dataclasses
import json
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem, t

import paper_figures
from analysis.bottleneck import FitConfig
from analysis.caps import gap_to_confidence, max_gap, simplex_cap, single_token_cap
from analysis.claims.effects import CELL, cell_effects, paired_effects
from analysis.lab.cells import coverage
from analysis.lab.records import config_key, configs_hash
from analysis.lab.registry import EXPERIMENTS, PRESETS, experiment, experiments
from analysis.lab.tables import find_table, read_table
from analysis.smoothing import optimal_gap
from analysis.study.grids import smoothing_at_gap

DATA = Path(paper_figures.__file__).parent / "data"
FOLDERS = {"quick": DATA / "quick", "full": DATA}


def committed(preset, name):
    """A committed table, whole."""
    path = find_table(FOLDERS[preset], name)
    assert path is not None
    return read_table(path)


@pytest.fixture(scope="module")
def rows():
    return committed("quick", "S3")


@pytest.fixture(scope="module")
def pairs(rows):
    return paired_effects(rows)


class TestGrids:
    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("name", EXPERIMENTS)
    def test_configs_are_different_and_every_smoothed_or_penalised_head_has_a_twin(self, name, preset):
        configs = experiment(name).configs(preset)
        assert len({config_key(config) for config in configs}) == len(configs)
        heads = [config for config in configs if isinstance(config, FitConfig)]
        changed = [config for config in heads if config.label_smoothing or config.confidence_penalty]
        plain = set(heads) - set(changed)
        twins = {dataclasses.replace(config, label_smoothing=0.0, confidence_penalty=0.0) for config in changed}
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
                if getattr(config, "arm", "") == "det" and config.vocab_size == 32768:  # a minute a fit, one seed
                    continue
                if getattr(config, "source", "") and config.vocab_size == 1024 and preset == "quick":
                    continue
            seeds.setdefault(cell, set()).add(seed)
        assert min(map(len, seeds.values())) >= {"S11": 3, "S12": 2}.get(name, least)  # half a minute a fit

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
        assert claims == {f"K{i}" for i in range(1, 10)} - {"K7"} | {"law"}
        assert all(study.predictions for study in experiments(["all"]))

    def test_unknown_names_are_refused(self):
        with pytest.raises(ValueError, match=r"^name must be one of \('S1', .*'S12'\), got 'S8'\.$"):
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
            # the plain head's, at b = .1; from entropies of six digits
            assert effect["activity_index"] == pytest.approx(plain["activity_index"], rel=1e-4, abs=1e-5)

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
        several = cells[cells["seeds"] > 1]
        assert (several["confidence_fall_low"] <= several["confidence_fall"]).all()
        assert (several["confidence_fall"] <= several["confidence_fall_high"]).all()
        assert cells.loc[cells["seeds"] == 1, "confidence_fall_low"].isna().all()

    def test_a_cell_has_the_t_interval_of_its_seeds(self, pairs):
        cells = cell_effects(pairs).set_index([*CELL, "label_smoothing"])
        key, group = next(iter(pairs.groupby([*CELL, "label_smoothing"], dropna=False)))
        cell, index = cells.loc[[key]].iloc[0], group["activity_index"]
        assert len(index) == 3
        expected = t(2, index.mean(), sem(index)).interval(0.95)
        assert (cell["activity_index_low"], cell["activity_index_high"]) == pytest.approx(expected)

    def test_what_cannot_be_paired_is_refused(self, rows):
        with pytest.raises(ValueError, match="different configs, got one twice"):
            paired_effects(pd.concat([rows, rows.head(1)]))
        with pytest.raises(ValueError, match="got none"):
            paired_effects(rows.query("label_smoothing == 0"))


@pytest.mark.parametrize("preset", PRESETS)
class TestTheoryInTheTables:
    """What is proven, in every committed row; the rules of C4, which are not, in 95 % of the pairs."""

    def test_rows_are_complete_cells_and_the_sidecar_counts_the_others(self, preset):
        for name in EXPERIMENTS:
            configs, keys = experiment(name).configs(preset), set(committed(preset, name)["key"])
            sidecar = json.loads((FOLDERS[preset] / f"{name}.json").read_text())
            found, grid = coverage(experiment(name), configs, keys), sidecar["grid"]
            assert found.keys == keys
            assert (grid["cells"], grid["cells_not_run"]) == (found.cells, found.not_run)
            assert (grid["not_run"], grid["failed"]) == (found.missing, {})
            assert sidecar["config"]["hash"] == configs_hash(configs)
            assert FOLDERS[preset] / sidecar["table"]["file"] == find_table(FOLDERS[preset], name)
            if preset == "quick":
                assert found.not_run == 0

    def test_full_is_of_a_gpu_and_trained_twice_as_long_as_it_took(self, preset):
        rows = committed(preset, "S3")
        sidecar = json.loads((FOLDERS[preset] / "S3.json").read_text())
        if preset == "quick":
            assert sidecar["device"] == ["cpu"]
            return
        assert any("H100" in device or "H200" in device for device in sidecar["device"])
        assert set(rows.loc[rows["vocab_size"] > 32768, "device"]) == {"cuda"}
        head = [name for name in experiment("S3").columns if name in rows and name != "label_smoothing"]
        assert rows.groupby(head, dropna=False)["device"].nunique().max() == 1  # pairs are of one device
        kept = rows.loc[rows["converged"] & (rows["steps"] < rows["max_steps"])]
        assert (kept["steps"] >= kept["overtime"] * kept["converged_at"]).all()
        assert set(rows.loc[rows["overtime"] != 2, "vocab_size"]) == {262144}

    def test_no_confidence_exceeds_a_proven_cap(self, preset):
        """A2 for every target at once; A1 for one token, with temperature and softcap (C2), in every row."""
        rows = committed(preset, "S3")
        float32 = 1e-6  # rounding of the training's norms
        m = rows["norm_coefficient"] * rows["hidden_size"] / rows["temperature"]
        det = (rows["teacher"] == "det") & rows["softcap"].isna()
        cap = simplex_cap(m[det], rows.loc[det, "vocab_size"])
        assert (rows.loc[det, "min_target_probability"] <= cap + float32).all()
        assert (rows.loc[det, "confidence"] <= cap + float32).all()
        assert (rows.loc[det, "cross_entropy"] >= -np.log(cap) * (1 - 1e-5) - float32).all()  # six digits
        gain = np.where(rows["softcap_form"] == "gain", rows["softcap"].fillna(1), 1.0)
        widest = np.minimum(m * gain, rows["softcap"].fillna(np.inf) / rows["temperature"])
        assert (rows["confidence"] <= single_token_cap(widest, rows["vocab_size"]) + float32).all()

    def test_c1_where_it_is_exact(self, preset):
        rows = committed(preset, "S3")
        exact = rows.query("teacher == 'det' and hidden_size >= vocab_size - 1 and softcap.isna() and converged")
        assert len(exact) >= 36
        v, b = exact["vocab_size"], exact["label_smoothing"]
        gap = max_gap(exact["norm_coefficient"] * exact["hidden_size"], v, temperature=exact["temperature"])
        wanted = np.where(b > 0, optimal_gap(np.where(b > 0, b, 1.0), v), np.inf)
        predicted = gap_to_confidence(np.minimum(gap, wanted), v)
        assert np.abs(exact["confidence"] - predicted).max() < 0.01

    def test_on_the_simplex_the_fall_is_linear_in_the_index(self, preset):
        """C4: A = (1 - p) V / (b (V - 1)), so that the fall is b (V - 1) / V max(0, 1 - A)."""
        pairs = paired_effects(committed(preset, "S3"))
        exact = pairs.query("teacher == 'det' and hidden_size >= vocab_size - 1 and softcap.isna() and converged")
        v, b = exact["vocab_size"], exact["label_smoothing"]
        predicted = b * (v - 1) / v * np.maximum(0, 1 - exact["activity_index"])
        assert np.abs(exact["confidence_fall"] - predicted).max() < 0.01

    def test_det_rules_of_the_index(self, preset):
        """Cells of deterministic teachers: A > 1.25, fall below .01; A < .8, its interval above 0."""
        pairs = paired_effects(committed(preset, "S3"))
        cells = cell_effects(pairs.query("teacher == 'det'"))
        inert, acting = cells[cells["activity_index"] > 1.25], cells[cells["activity_index"] < 0.8]
        assert min(len(inert), len(acting)) >= 10
        assert (inert["confidence_fall"].abs() < 0.01).mean() >= 0.95
        assert (acting["confidence_fall_low"] > 0).mean() >= 0.95

    def test_det_smoothing_is_inert_below_rho_09(self, preset):
        pairs = paired_effects(committed(preset, "S3"))
        inert = pairs.query("teacher == 'det' and effectiveness_ratio < 0.9 and converged")
        assert len(inert) >= 20
        assert inert["confidence_fall"].abs().max() <= 0.01

    def test_searched_ceilings_stay_below_the_proven_ones(self, preset):
        table = committed(preset, "S1")
        found = table[table["attained_gap"].notna()]
        assert len(found) >= 150
        assert (found["attained_gap"] <= found["simplex_gap"] * (1 + 1e-5)).all()  # six digits in the table
        assert (found["attained_gap"] <= found["rank_gap"] * (1 + 1e-5)).all()
        full_rank = found[found["hidden_size"] >= found["vocab_size"] - 1]
        np.testing.assert_allclose(full_rank["attained_gap"], full_rank["simplex_gap"], rtol=1e-5)

    def test_random_logits_agree_with_the_exact_expectations(self, preset):
        """All seeds of a spread together; one seed has 32 contexts at V = 262144, too few for a skewed mean's error."""
        table = committed(preset, "S2")
        for name in ("entropy", "confidence", "participation"):
            deviation, variance = table[name] - table[f"{name}_exact"], table[f"{name}_error"] ** 2
            spreads = table.assign(deviation=deviation, variance=variance).groupby(["vocab_size", "share"])
            score = spreads["deviation"].sum() / np.sqrt(spreads["variance"].sum())
            assert len(score) >= 24
            assert score.abs().max() < 4
            assert 0.5 < score.std() < 1.6

    def test_population_heads_have_the_entropy_of_their_loss(self, preset):
        """D3 at b = 0; and smoothing a head that is wide enough costs b (E max p - 1/V), D2."""
        table = committed(preset, "S6")
        plain = table[(table["label_smoothing"] == 0) & table["converged"]]
        assert (plain["entropy"] - plain["cross_entropy"]).abs().max() < 1e-3
        wide = table[(table["label_smoothing"] > 0) & (table["hidden_size"] > table["rank"])]
        assert len(wide) >= 6
        assert np.abs(wide["confidence"] - wide["best_accuracy"] + wide["smoothed_ece_predicted"]).max() < 0.01

    def test_reliability_bins_add_up_to_the_error(self, preset):
        table = committed(preset, "S7")
        curves = table[table["reliability"].notna()]
        assert len(curves) >= 100
        for line in curves.to_dict("records"):
            bins = np.array([part.split(":") for part in line["reliability"].split(";")], float)
            error = (bins[:, 0] * np.abs(bins[:, 1] - bins[:, 2])).sum() / bins[:, 0].sum()
            assert error == pytest.approx(line["true_ece"], abs=2e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("name", "column", "tolerance", "count"),
    [("S1", "attained_gap", 1e-5, 2), ("S2", "entropy", 1e-4, 1), ("S3", "confidence", 2e-3, 4),
     ("S4", "confidence", 5e-3, 2), ("S5", "confidence", 5e-3, 2), ("S6", "confidence", 2e-3, 2),
     ("S7", "true_ece", 5e-3, 1)],
)  # fmt: skip
def test_rows_can_be_made_again(name, column, tolerance, count, preset):
    """Rows of the cheap end of each table that a CPU made, chosen by a fixed seed, on this machine's."""
    study, table = experiment(name), committed(preset, name)
    made = table.loc[table["converged"].astype(bool) & (table["device"] == "cpu")].drop_duplicates("key")
    steps = made.set_index("key").get("steps", pd.Series(1, index=made["key"]))  # the estimate has one number for all
    searched = [config for config in study.configs(preset) if not getattr(config, "model", "")]
    cost = {c: study.seconds(c, "cpu") * steps[key] for c in searched if (key := config_key(c)) in steps}
    cheap = sorted(cost, key=lambda config: cost[config])
    # a row of full takes up to 20 s
    cheap, count = (cheap[:5], 1) if preset == "full" else (cheap[: max(3, len(cheap) // 4)], count)
    for index in np.random.default_rng(0).choice(len(cheap), count, replace=False):
        row = study.compute(cheap[index], device="cpu")
        again = [line[column] for line in row["measurements"]] if "measurements" in row else [row[column]]
        stored = table.loc[table["key"] == config_key(cheap[index]), column]
        assert len(stored) > 0
        np.testing.assert_allclose(again, stored, atol=tolerance, rtol=1e-5)
