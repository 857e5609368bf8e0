"""Grids and paired effects; and what the theory says of every row of the committed quick table."""

import dataclasses
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import paper_figures
from analysis.bottleneck import fit
from analysis.caps import gap_to_confidence, max_gap, simplex_cap
from analysis.records import config_key
from analysis.smoothing import optimal_gap
from analysis.study.effects import cell_effects, paired_effects
from analysis.study.grids import GRIDS, PRESETS, grid

TABLE = Path(paper_figures.__file__).parent / "data" / "quick" / "trained_heads.csv"


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(TABLE)


@pytest.fixture(scope="module")
def pairs(rows):
    return paired_effects(rows)


class TestGrids:
    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("name", GRIDS)
    def test_configs_are_different_and_every_smoothed_one_has_a_twin(self, name, preset):
        configs = grid(name, preset)
        assert len({config_key(config) for config in configs}) == len(configs)
        plain = {config for config in configs if config.label_smoothing == 0}
        twins = [dataclasses.replace(config, label_smoothing=0.0) for config in configs if config.label_smoothing]
        assert twins
        assert plain.issuperset(twins)
        assert plain == set(twins)

    def test_quick_holds_the_grid_of_the_design(self):
        configs = grid("trained_heads", "quick")
        for kind in ("det", "lowrank"):
            cells = {
                (c.teacher.vocab_size, c.hidden_size, c.temperature, c.label_smoothing, c.seed)
                for c in configs
                if c.teacher.kind == kind and c.norm_coefficient == 0.1 and c.teacher.vocab_size < 1024
            }
            assert len(cells) == 2 * 4 * 2 * 2 * 3
        assert {c.hidden_size for c in configs if c.teacher.vocab_size == 1024} == {16, 64}

    @pytest.mark.parametrize(("name", "preset"), [("heads", "quick"), ("trained_heads", "tiny")])
    def test_unknown_names_are_refused(self, name, preset):
        with pytest.raises(ValueError, match=r"must be one of \('(trained_heads|quick)'"):
            grid(name, preset)


class TestEffects:
    def test_pairs_and_signs(self, rows, pairs):
        assert len(pairs) == (rows["label_smoothing"] > 0).sum() == len(rows) / 2
        one = pairs.query("teacher == 'lowrank' and hidden_size == 64 and temperature == 0.25 and vocab_size == 256")
        same = rows.query("teacher == 'lowrank' and hidden_size == 64 and temperature == 0.25 and vocab_size == 256")
        for seed in range(3):
            plain, smoothed = (same.query(f"data_seed == {seed} and label_smoothing == {b}").iloc[0] for b in (0, 0.1))
            effect = one.query(f"data_seed == {seed}").iloc[0]
            assert effect["confidence_fall"] == plain["confidence"] - smoothed["confidence"]
            assert effect["true_ece_gain"] == plain["true_ece"] - smoothed["true_ece"]
            assert effect["accuracy_gain"] == smoothed["accuracy"] - plain["accuracy"]
            assert effect["activity_index"] == pytest.approx(plain["activity_index"])  # the plain head's, at b = .1

    def test_missing_values_match_before_and_after_a_csv(self, rows):
        fresh = rows.astype({"softcap": object}).replace({"softcap": {np.nan: None}})
        assert fresh["softcap"].isna().all()
        again = pd.read_csv(StringIO(fresh.to_csv(index=False)))
        one, two = paired_effects(fresh), paired_effects(again)
        assert len(one) == len(two) == len(rows) / 2
        assert one["confidence_fall"].tolist() == two["confidence_fall"].tolist()
        assert cell_effects(one)["seeds"].tolist() == cell_effects(two)["seeds"].tolist()

    def test_cells_leave_out_what_has_not_converged(self, pairs):
        cells = cell_effects(pairs)
        assert cells["seeds"].sum() == len(pairs)
        first = pairs.index[0]
        fewer = cell_effects(pairs.assign(converged=pairs.index != first))
        assert fewer["seeds"].sum() == len(pairs) - 1
        assert (cells["confidence_fall_low"] <= cells["confidence_fall"] + 1e-12).all()
        assert (cells["confidence_fall"] <= cells["confidence_fall_high"] + 1e-12).all()

    def test_what_cannot_be_paired_is_refused(self, rows):
        with pytest.raises(ValueError, match="different configs, got one twice"):
            paired_effects(pd.concat([rows, rows.head(1)]))
        with pytest.raises(ValueError, match="got none"):
            paired_effects(rows.query("label_smoothing == 0"))


class TestTheoryInTheTable:
    def test_all_converged(self, rows):
        assert len(rows) == len(grid("trained_heads", "quick"))
        assert rows["converged"].all()

    def test_c1_where_it_is_exact(self, rows):
        exact = rows.query("teacher == 'det' and hidden_size >= vocab_size - 1")
        assert len(exact) >= 36
        v, b = exact["vocab_size"], exact["label_smoothing"]
        gap = max_gap(exact["norm_coefficient"] * exact["hidden_size"], v, temperature=exact["temperature"])
        wanted = np.where(b > 0, optimal_gap(np.where(b > 0, b, 1.0), v), np.inf)
        predicted = gap_to_confidence(np.minimum(gap, wanted), v)
        assert np.abs(exact["confidence"] - predicted).max() < 0.01

    def test_no_row_exceeds_a2(self, rows):
        det = rows.query("teacher == 'det'")
        cap = simplex_cap(det["norm_coefficient"] * det["hidden_size"] / det["temperature"], det["vocab_size"])
        float32 = 1e-6  # rounding of the training's norms
        assert (det["min_target_probability"] <= cap + float32).all()
        assert (det["confidence"] <= cap + float32).all()
        assert (det["cross_entropy"] >= -np.log(cap) - float32).all()

    def test_det_smoothing_is_inert_below_rho_09(self, pairs):
        inert = pairs.query("teacher == 'det' and effectiveness_ratio < 0.9")
        assert len(inert) >= 20
        assert inert["confidence_fall"].abs().max() <= 0.01

    def test_rows_can_be_made_again(self, rows):
        """A few rows of the small end, chosen by a fixed seed, on this machine."""
        small = [c for c in grid("trained_heads", "quick") if c.teacher.vocab_size == 64 and c.hidden_size <= 64]
        by_key = rows.set_index("key")
        for index in np.random.default_rng(0).choice(len(small), 6, replace=False):
            config = small[index]
            assert fit(config)["confidence"] == pytest.approx(by_key.loc[config_key(config), "confidence"], abs=2e-3)
