"""The figures on capping and on samples show the paired differences of their tables, where they say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem, t

from paper_figures import capping, samples, tables


def table(name):
    return tables.read(name, "quick", tables.DATA / "nowhere")


def gains(rows):
    """Plain minus smoothed true ECE by seed."""
    plain, smoothed = (rows.loc[rows["label_smoothing"] == b].set_index("data_seed")["true_ece"] for b in (0.0, 0.1))
    return plain - smoothed


class TestCapping:
    @pytest.mark.parametrize(
        ("evaluation", "setting", "drawn_as"),
        [
            ("as_trained", "temperature == .25 and softcap.isna()", ("temperature", 0.25, "as trained")),
            ("plain", "temperature == .25 and softcap.isna()", ("temperature", 0.25, "removed")),
            ("as_trained", "softcap == 4 and softcap_form == 'gain'", ("gain", 4.0, "as trained")),
            ("plain", "softcap == 5 and softcap_form == 'contraction'", ("contraction", 5.0, "removed")),
            ("T=0.25", "temperature == 1 and softcap.isna()", ("temperature", 0.25, "only")),
            ("cap 5 contraction", "temperature == 1 and softcap.isna()", ("contraction", 5.0, "only")),
            ("as_trained", "temperature == 1 and softcap.isna()", ("none", 1.0, "as trained")),
        ],
    )
    def test_a_treatment_is_the_paired_difference_of_its_rows(self, drawn, evaluation, setting, drawn_as):
        rows = table("S5").query(f"evaluation == @evaluation and norm == 'free' and weight_decay == 0 and {setting}")
        rows = rows.loc[rows["features"] == "free"]
        by_seed = gains(rows.loc[rows["converged"]]).dropna()
        free = drawn("capping", "quick")[1].query("regime == 'free' and features == 'free'")
        found = free.loc[(free[["form", "value", "reading"]] == list(drawn_as)).all(axis=1)]
        assert len(found) == 1
        assert found["true_ece_gain"].item() == pytest.approx(by_seed.mean())
        assert found["seeds"].item() == len(by_seed)

    def test_every_row_of_the_drawn_numbers_is_a_point_in_its_column(self, drawn, at):
        _, rows, figure = drawn("capping", "quick")
        columns = {ax.get_title(): ax for ax in figure.axes}
        assert list(columns) == ["norm budget", "free norms", "weight decay"]
        for regime, title in capping._REGIMES.items():
            wanted = sorted(rows.loc[rows["regime"] == regime, "true_ece_gain"])
            np.testing.assert_allclose(sorted(x for x, _ in at(columns[title])), wanted, rtol=2e-5)

    def test_points_stand_nearest_to_the_row_of_their_treatment(self, drawn):
        _, rows, figure = drawn("capping", "quick")
        ax = figure.axes[0]
        names = {-round(y): text.get_text() for y, text in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
        assert len(names) == len(rows[["treatment", "reading"]].replace({"removed": "as trained"}).drop_duplicates())
        tempered = rows.query("regime == 'budget' and form == 'temperature' and reading != 'only'")
        seen = {
            (round(float(x), 9), names[-round(float(y))])
            for line in ax.get_lines()
            if line.get_marker() in "osD^"
            for x, y in zip(*line.get_data(), strict=True)
        }
        for row in tempered.itertuples():
            assert (round(row.true_ece_gain, 9), row.treatment) in seen

    def test_open_marks_are_what_was_taken_away(self, drawn):
        rows, figure = drawn("capping", "quick")[1:]
        taken = set(rows.loc[rows["reading"] == "removed", "true_ece_gain"].round(9))
        for ax in figure.axes:
            for line in ax.get_lines():
                if line.get_marker() in "osD^":
                    is_open = line.get_markerfacecolor() == "white"
                    assert all((round(float(x), 9) in taken) == is_open for x in line.get_xdata())


class TestSamples:
    def test_cells_are_paired_differences_and_scale_gaps_of_the_plain_head(self, drawn):
        rows = table("S4").query("norm == 'budget' and hidden_size == 64 and samples_per_context == 8 and converged")
        by_seed = gains(rows)
        plain = rows.loc[rows["label_smoothing"] == 0]
        found = drawn("samples", "quick")[1].query(
            "norm == 'budget' and hidden_size == 64 and samples_per_context == 8"
        )
        assert found["true_ece_gain"].item() == pytest.approx(by_seed.mean())
        low, high = t(2, by_seed.mean(), sem(by_seed)).interval(0.95)
        assert found[["true_ece_gain_low", "true_ece_gain_high"]].iloc[0].tolist() == pytest.approx([low, high])
        assert found["over_confidence"].item() == pytest.approx((plain["held_out_nll"] - plain["entropy"]).mean())

    def test_points_are_the_cells(self, drawn, at):
        _, rows, figure = drawn("samples", "quick")
        budget, free, signs = figure.axes
        for ax, norm in ((budget, "budget"), (free, "free")):
            cells = rows.loc[rows["norm"] == norm]
            wanted = sorted(zip(cells["samples_per_context"], cells["true_ece_gain"], strict=True))
            np.testing.assert_allclose(at(ax), wanted, rtol=2e-5)
        wanted = zip(rows["over_confidence"], rows["true_ece_gain"], strict=True)
        np.testing.assert_allclose(at(signs), sorted(wanted), rtol=2e-5)

    def test_the_signs_are_counted(self, drawn):
        _, rows, figure = drawn("samples", "quick")
        same = sum(a * b > 0 for a, b in zip(rows["true_ece_gain"], rows["over_confidence"], strict=True))
        assert figure.axes[-1].get_title(loc="left") == f"(c) sign rule: {same} of {len(rows)}"

    def test_a_cell_without_a_converged_pair_breaks_its_line_and_every_size_is_named(self, drawn):
        _, rows, _ = drawn("samples", "quick")
        lost = (rows["norm"] == "free") & (rows["hidden_size"] == 16) & (rows["samples_per_context"] == 8)
        assert lost.sum() == 1
        free = samples.make(rows[~lost], preset="quick").axes[1]
        lines = [
            line.get_ydata() for line in free.get_lines() if len(line.get_xdata()) == 3 and line.get_marker() == "None"
        ]
        assert sorted(int(np.isnan(y).sum()) for y in lines) == [0, 1, 2]  # D = 64, 16, and 4, which has one cell
        assert {text.get_text() for text in free.texts if text.get_text().isdecimal()} == {"4", "16", "64"}

    def test_the_shaded_quarters_are_those_of_different_signs(self, drawn):
        patches = drawn("samples", "quick")[2].axes[-1].patches
        middles = [(p.get_x() + p.get_width() / 2, p.get_y() + p.get_height() / 2) for p in patches]
        assert [np.sign(x * y) for x, y in middles] == [-1, -1]

    def test_one_teacher_and_vocabulary_are_shown_against_samples_all_in_the_sign_rule(self, drawn, at):
        rows = drawn("samples", "quick")[1]
        more = pd.concat([rows, rows.assign(vocab_size=4096, true_ece_gain=0.2)], ignore_index=True)
        budget, _, signs = samples.make(more, preset="full").axes
        assert len(at(budget)) == len(rows.loc[rows["norm"] == "budget"])
        assert len(at(signs)) == 2 * len(rows)
