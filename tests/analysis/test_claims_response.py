"""S9: its grid, its row against an independent computation, the join with the tables, and the unfitted share."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import paper_figures
from analysis.audit import verdict
from analysis.bottleneck import FitConfig, fit
from analysis.claims.law import judged
from analysis.claims.law_pairs import CELL, distinct, joined
from analysis.claims.response import accuracy, main, unfitted_share
from analysis.lab.placement import order
from analysis.lab.records import config_key
from analysis.lab.registry import experiment, tidy
from analysis.lab.tables import find_table, read_table
from analysis.response import clipped_fall, frozen_head_response
from analysis.study.s9_grid import ResponseConfig
from analysis.study.s9_response import respond
from analysis.teachers import TeacherConfig

DATA = Path(paper_figures.__file__).parent / "data"
QUICK = DATA / "quick"


@pytest.fixture(scope="module")
def config():
    head = FitConfig(
        teacher=TeacherConfig(kind="lowrank", vocab_size=24, n_contexts=24, rank=8), hidden_size=8, norm_coefficient=0.5,
        max_steps=600,
    )  # fmt: skip
    return ResponseConfig(head=head, seed=2, smoothings=(0.05, 0.2), arm="trunk")


@pytest.fixture(scope="module")
def row(config):
    return respond(config)


def test_every_smoothed_cell_up_to_4096_is_asked_for_once():
    for preset in ("full",):
        asked = {
            config_key(replace(config.plain, label_smoothing=b))
            for config in experiment("S9").configs(preset)
            if config.source
            for b in config.smoothings
        }
        wanted = {
            config_key(config)
            for name in ("S3", "S4", "S5")
            for config in experiment(name).configs(preset)
            if config.label_smoothing and config.teacher.vocab_size <= 4096
        }
        assert asked == wanted


def test_the_arms_are_there():
    configs = experiment("S9").configs("full")
    assert {c.teacher.samples_per_context for c in configs if c.arm == "trunk"} == {1, 8, 64}
    assert {c.teacher.n_contexts for c in configs if c.arm == "contexts"} == {128, 512, 1024, 4096}
    assert {c.vocab_size for c in configs if c.arm == "det"} == {1024, 4096, 32768}
    assert all(c.head.features == "trunk" for c in configs if c.arm == "trunk")


def test_the_transition_comes_first_and_the_largest_vocabulary_last():
    listed = [job.config for job in order([experiment("S9")], "full", "cuda")]
    first = sum(c.source == "S3" and c.vocab_size == 256 and c.hidden_size <= 64 for c in listed)
    assert all(c.source == "S3" and c.vocab_size == 256 and c.hidden_size <= 64 for c in listed[:first])
    assert [c.head.norm == "free" and c.hidden_size == 4 for c in listed[-45:]] == [True] * 45
    sizes = [c.vocab_size for c in listed[:-45]]
    assert max(sizes[: -sizes.count(32768)]) == 4096
    assert sizes == sorted(sizes, key=lambda v: (v > 256) + (v > 4096))


def test_a_row_holds_what_the_fits_say(config, row):
    plain, *smoothed = (fit(replace(config.plain, label_smoothing=b)) for b in (0.0, *config.smoothings))
    assert row["plain_confidence"] == pytest.approx(plain["confidence"], abs=1e-4)
    for line, after in zip(row["measurements"], smoothed, strict=True):
        assert line["fall"] == pytest.approx(plain["confidence"] - after["confidence"], abs=2e-4)
        assert line["true_ece_gain"] == pytest.approx(plain["true_ece"] - after["true_ece"], abs=2e-3)
        assert line["predicted_fall"] == pytest.approx(line["fall"], rel=0.2, abs=2e-3)
        assert line["solved"]
    assert row["measurements"][1]["first_order_fall"] == pytest.approx(0.2 * row["chi"])


def test_heads_that_differ_from_their_row_are_marked(row):
    predictions = tidy(pd.DataFrame([{**row, "plain_key": "p"}])).assign(fall=np.nan, true_ece_gain=np.nan)
    predictions["smoothed_key"] = ["s", "t"]
    keys = {"key": ["p", "s", "t"], "true_ece": [0.1, 0.08, 0.05], "converged": [True] * 3}
    for off, confirmed in ((5e-4, True), (2e-3, False)):
        before = row["plain_confidence"] + off
        table = pd.DataFrame({**keys, "confidence": [before, before - 0.01, before - 0.04]})
        pairs = joined(predictions, {"S3": table})
        assert pairs["confirmed"].tolist() == [confirmed] * 2
        assert pairs["fall"].tolist() == pytest.approx([0.01, 0.04])
        assert pairs["true_ece_gain"].tolist() == pytest.approx([0.02, 0.05])


def test_the_share_is_not_fitted():
    measured = np.array([0.0, 0.1, 0.2])
    assert unfitted_share(measured, measured) == 1
    assert unfitted_share(2 * measured, measured) == pytest.approx(1 - 0.05 / 0.02)
    assert unfitted_share(np.full(3, 0.1), measured) == pytest.approx(0)


@pytest.mark.skipif(find_table(QUICK, "S9") is None, reason="needs the quick table")
def test_the_committed_quick_rows_agree_with_the_law(tmp_path):
    pairs = joined(read_table(find_table(QUICK, "S9")), {"S3": read_table(find_table(QUICK, "S3"))})
    assert pairs["confirmed"].all()
    table = accuracy(pairs).set_index(["group", "predictor"])
    assert table.loc[("all cells", "predicted_fall"), "r2"] > 0.98
    assert table.loc[("noisy, .05 < A < 6", "clipped_fall"), "ahead_low"] > 0
    assert main(["--preset", "quick", "--file", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").exists()


@pytest.fixture(scope="module")
def full():
    tables = {name: read_table(find_table(DATA, name)) for name in ("S3", "S4", "S5")}
    return joined(read_table(find_table(DATA, "S9")), tables)


def test_the_committed_accuracy_is_that_of_the_committed_rows(full):
    key = ["group", "predictor"]
    made, kept = accuracy(full).set_index(key), read_table(find_table(DATA, "S9_accuracy")).set_index(key)
    pd.testing.assert_frame_equal(made.drop(columns="largest_error_cell"), kept[list(made)[:-1]], rtol=1e-4, atol=1e-5)


def test_the_notes_say_where_the_law_misses(full):
    notes = " ".join((DATA.parents[1] / "docs" / "law_notes.md").read_text(encoding="utf-8").split())
    table = read_table(find_table(DATA, "S9_accuracy")).set_index(["group", "predictor"])
    heads = read_table(find_table(DATA, "S9"))
    assert f"{heads['key'].nunique():,} of the {len(experiment('S9').configs('full')):,} planned" in notes
    assert f"make {len(full):,} pairs that converged" in notes
    lost, unsolved = (~full["confirmed"]).sum(), (full["solved"].astype(str) != "True").sum()
    assert f"{unsolved} whose response was not solved and {lost - unsolved} whose head" in notes

    def r2(group, rule="predicted_fall"):
        return f"{table.loc[(group, rule), 'r2']:.3f}"

    inside = "noisy, .05 < A < 6"
    p, noisy = (table.loc[(group, "predicted_fall")] for group in (inside, "noisy"))
    assert f"by more than 0.01 in {noisy['overstated']} of {noisy['cells']} settings" in notes
    assert f"{p['r2']:.3f} [{p['r2_low']:.3f}, {p['r2_high']:.3f}] in {p['cells']} noisy ones" in notes
    assert f"grows by {p['slope']:.3f} for each unit" in notes
    assert p["r2_high"] < 0.97  # what was registered, refuted
    assert p["slope_high"] < 0.95
    everywhere = ("predicted_fall", "clipped_fall", "rational_fall")
    missed = [table.loc[("all cells", rule), "missed"] for rule in everywhere]
    assert "off by more than 0.01 in {} settings, these rules in {} and {}".format(*missed) in notes
    assert f"At V = 256 it has {r2(f'{inside}, V = 256')}" in notes
    assert f"at D = 64 {r2(f'{inside}, D = 64')}, at D = 16 {r2(f'{inside}, D = 16')}" in notes
    for rule, group in (("rational_fall", "noisy, budget norms"), ("sphere_fall", "noisy"), ("sphere_fall", inside)):
        assert table.loc[(group, rule), "ahead_high"] < 0
        assert re.search(rf"{r2(group, rule)}(?: against| and P) {r2(group)}", notes)
    share = [f"{table.loc[(group, 'predicted_fall'), 'share_r2']:.3f}" for group in ("all cells", "noisy", inside)]
    assert "P explains {}, {} in noisy settings and {} in their transition".format(*share) in notes
    kept = [r2(f"{group}, unsolved kept") for group in ("all cells", inside, "noisy, with a softcap")]
    assert "{} over all settings, {} in the noisy transition and {} under a cap".format(*kept) in notes
    misses = [table.loc[("noisy", rule), "missed"] for rule in ("rational_fall", "clipped_fall")]
    assert misses[0] == noisy["missed"]
    assert "as few noisy settings as P: {} of 304, the clipped rule {}".format(*misses) in notes
    for b in (0.2, 0.4, 0.64):
        group = f"noisy, b = {b}, .05 < A < 6"
        assert f"{b} ({r2(group)}, the rule {r2(group, 'rational_fall')}" in notes
        assert table.loc[(group, "rational_fall"), "ahead_high"] < 0
    for group in ("arm trunk, 8 samples", "arm contexts, 128 contexts"):
        assert f"{r2(group, 'rational_fall')} against {r2(group)}" in notes
    of_first = read_table(find_table(DATA, "S9_predictions")).set_index("part")["cells"]
    det_above, noisy_above = (
        of_first[f"fall near b chi where A > 3 and b <= 0.1, {kind}"] for kind in ("det", "noisy")
    )
    assert f"in all {det_above} deterministic settings with A above 3" in notes
    assert f"Of {noisy_above} noisy ones" in notes
    decays = [f"noisy, free norms, weight decay {decay}" for decay in ("0.0001", "0")]
    assert f"P explains {r2(decays[0])} of {table.loc[(decays[0], 'predicted_fall'), 'cells']} such" in notes
    assert f"it explains {r2(decays[1])} of {table.loc[(decays[1], 'predicted_fall'), 'cells']} (S5" in notes
    page = " ".join((DATA.parents[1] / "docs" / "will_smoothing_help.md").read_text(encoding="utf-8").split())
    rough = [table.loc[(kind, "clipped_fall"), name] for kind in ("det", "noisy") for name in ("missed", "cells")]
    assert "in {} of {} settings with deterministic targets and in {} of {} with noisy".format(*rough) in page
    arms = [
        table.loc[[("det, arms too", "clipped_fall"), ("noisy, arms too", "clipped_fall")], name].sum()
        for name in ("missed", "cells")
    ]
    own = arms[1] - sum(rough[1::2])
    assert (
        "(of S3 to S5; the README's figure adds {} of S9's own, and in all it misses in {} of {});".format(own, *arms)
        in page
    )
    other = [table.loc[(kind, "rational_fall"), "missed"] for kind in ("det", "noisy")]
    assert "does in {} and {} (".format(*other) in page
    for arm in ("arm trunk", "arm contexts"):
        assert f"{r2(arm, 'sphere_fall')} against {r2(arm)}" in notes
        assert table.loc[(arm, "sphere_fall"), "ahead_high"] < 0
        assert f"{r2(arm, 'sphere_fall')} against" in " ".join((frozen_head_response.__doc__ or "").split())


def test_the_audit_says_how_far_noisy_heads_fall_above_one(full):
    above = full.loc[full["confirmed"] & (full["teacher"] != "det") & (full["activity_index"] > 1)]
    largest = above["fall"].max()
    assert above.loc[above["fall"].idxmax(), "activity_index"] < 3
    said = audited(activity=1.5)
    assert f"confidence still fell at indices of 1 to 3, by up to {largest:.3f}" in said
    some = above.loc[above["activity_index"] <= 3]
    amplitude = some["label_smoothing"] * (some["plain_confidence"] - 1 / some["vocab_size"])
    notes = " ".join((DATA.parents[1] / "docs" / "law_notes.md").read_text(encoding="utf-8").split())
    fell, of_all = ((pairs["fall"] > 0.01).sum() for pairs in (some, above))
    assert f"Of the {len(some)} noisy pairs with A of 1 to 3, {fell} fall by more than 0.01, the most by" in notes
    assert f"the median is {(some['fall'] / amplitude).median():.2f} of b" in notes
    assert f"Of the {len(above):,} with A above 1 these are {of_all}" in notes


def planted(scale):
    """Pairs of four cells of each kind and three seeds, whose prediction is the fall times ``scale``."""
    lines = []
    for kind in ("det", "lowrank"):
        for cell in range(4):
            for seed in range(3):
                fall = 0.02 * (cell + 1) + 1e-4 * seed
                lines.append({
                    "teacher": kind, "source": "S3", "arm": np.nan, "hidden_size": cell, "label_smoothing": 0.1,
                    "vocab_size": 16, "samples_per_context": 8, "plain_confidence": 0.5,
                    "data_seed": seed, "activity_index": 4.0 if cell == 0 else 0.5, "fall": fall, "confirmed": True,
                    "predicted_fall": scale * fall, "sphere_fall": 0.0, "clipped_fall": 0.5 * fall,
                    "rational_fall": 0.5 * fall, "first_order_fall": scale * fall,
                })  # fmt: skip
    return pd.DataFrame(lines)


def test_a_head_that_stands_in_several_settings_counts_once():
    pairs = planted(1.0).assign(
        norm="budget", features="free", norm_coefficient=0.2, temperature=1.0, softcap=np.nan, source="S3"
    )
    copies = pairs.assign(norm_coefficient=0.05, temperature=0.25, source="S5")
    capped = pairs.assign(softcap=4.0)
    for other, cells in ((copies, 8), (copies.assign(norm="free"), 16), (capped, 16), (copies.assign(softcap=4.0), 16)):
        line = accuracy(pd.concat([pairs, other], ignore_index=True)).set_index(["group", "predictor"])
        assert line.loc[("all cells", "predicted_fall"), "cells"] == cells
    twice = accuracy(pd.concat([pairs, copies.assign(fall=copies["fall"] + 0.02)], ignore_index=True))
    line = twice.set_index(["group", "predictor"]).loc[("all cells", "predicted_fall")]
    assert line["largest_error"] == pytest.approx(0.01)  # the mean of the two


def test_what_the_solver_left_counts_in_a_line_of_its_own():
    pairs = planted(1.0).assign(solved=True, confidence_off=0.0, confirmed=True)
    left = pairs["hidden_size"] == 3
    pairs.loc[left, ["solved", "confirmed"]] = False
    pairs.loc[left, "predicted_fall"] += 0.03
    table = accuracy(pairs).set_index(["group", "predictor"])
    without, kept = (table.loc[(f"all cells{more}", "predicted_fall")] for more in ("", ", unsolved kept"))
    assert (without["cells"], kept["cells"]) == (6, 8)
    assert without["largest_error"] == pytest.approx(0)
    assert kept["largest_error"] == pytest.approx(0.03)
    plain = pd.DataFrame({"key": ["a"], "converged": True, "teacher": ["det"], "hidden_size": 16, "vocab_size": 16,
                          "sin_squared": [0.005]})  # fmt: skip
    holds = judged(accuracy(pairs), pairs, plain, CELL).set_index("part")["holds"]
    assert holds[["R2 of P, all cells", "R2 of P, all cells, unsolved kept"]].tolist() == ["yes", "no"]
    off = accuracy(pairs.assign(confidence_off=np.where(left, 0.01, 0.0))).set_index(["group", "predictor"])
    assert off.loc[("all cells, unsolved kept", "predicted_fall"), "cells"] == 6  # another plain head


@pytest.mark.parametrize(("scale", "holds"), [(1.0, "yes"), (1.6, "no")])
def test_what_was_registered_is_judged_part_by_part(scale, holds):
    pairs = planted(scale)
    plain = pd.DataFrame({
        "key": ["a", "b", "b"], "converged": True, "teacher": ["det", "lowrank", "lowrank"], "hidden_size": 16,
        "vocab_size": 16, "sin_squared": [0.005, 0.3, 0.3],
    })  # fmt: skip
    table = judged(accuracy(pairs), pairs, plain, CELL)
    found = table.set_index("part")["holds"]
    for part in ("slope of the fall on P, noisy, .05 < A < 6", "fall near b chi where A > 3 and b <= 0.1, det"):
        assert found[part] == holds
    assert found["R2 of P, all cells"] == holds
    assert found["sin2 of plain heads, noisy"] == "yes"
    assert found["P near the fall, trunk, 8 samples"] == "not run"
    assert found["largest error of P, det, V = 32768"] == "not run"
    assert table.set_index("part").loc["sin2 of plain heads, noisy", "cells"] == 1  # a head counts once


def test_the_committed_judgement_is_that_of_the_committed_rows(full):
    accurate = read_table(find_table(DATA, "S9_accuracy"))
    made = judged(accurate, distinct(full), read_table(find_table(DATA, "S9")), CELL)
    kept = read_table(find_table(DATA, "S9_predictions"))
    assert made[["prediction", "part", "asked", "cells", "holds"]].equals(
        kept[["prediction", "part", "asked", "cells", "holds"]]
    )
    np.testing.assert_allclose(made["found"], kept["found"], rtol=1e-4, atol=1e-5)


def test_the_audit_says_how_its_prediction_fared_on_new_texts():
    """The audit's own number, read off plain tunings, beside the fall of their twins."""
    ratios = {}
    for name in ("instruction_full", "instruction_candidates"):
        table = read_table(find_table(DATA, name)).query(
            "split == 'test' and reading == 'as_trained' and temperature == 1 and view in ('letter', 'tokens', 'text')"
        )
        last = table.loc[table["softcap"].isna() & (table["epoch"] == table["epoch"].max())]
        cells = last.set_index(["view", "label_smoothing", "data_seed"]).sort_index()
        for view in ("letter", "tokens", "text"):
            plain = cells.loc[view, 0.0]
            p, a = plain["confidence"].to_numpy(), plain["activity"].to_numpy()  # the index is that of b = .1
            for b in (0.1, 0.2):
                fall = p - cells.loc[view, b].loc[plain.index, "confidence"].to_numpy()
                ratios[name, view, b] = fall.mean() / clipped_fall(p, 0.1 * a / b, 49152, b).mean()
        assert [round(ratios[name, "text", b]) for b in (0.2, 0.1)] == [2, 3]
    said = audited(activity=0.5)
    assert f"fell by {min(ratios.values()):.1f} to {max(ratios.values()):.1f} times as much on new texts" in said
    assert "two to three times on ordinary text" in said


def audited(activity):
    """The committed audit in words, as if it had found this index, and a predicted fall."""
    table = read_table(find_table(DATA, "audit_smollm2"))
    index = (table["part"] == "smoothing") & (table["name"] == "activity")
    fall = table.loc[index].assign(name="predicted_fall", value=0.1, low=0.1, high=0.1)
    table.loc[index, ["value", "low", "high"]] = activity
    return verdict(pd.concat([table, fall]))
