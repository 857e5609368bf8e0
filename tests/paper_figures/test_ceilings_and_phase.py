"""Points and lines of the figures on ceilings and on random logits, against the tables and independent formulas."""

from __future__ import annotations

import numpy as np
import pytest

from paper_figures import tables
from paper_figures.style import THEORY_COLOUR


def table(name):
    return tables.read(name, "quick", tables.DATA / "nowhere")


def lines_of(ax, colour=THEORY_COLOUR):
    return [line for line in ax.get_lines() if line.get_color() == colour and len(line.get_xdata()) > 2]


def ceilings_of(ax):
    """Lines without markers, by colour."""
    return {line.get_color(): line for line in ax.get_lines() if len(line.get_xdata()) == 199}


class TestCeilings:
    def test_points_are_the_means_of_the_searches_and_of_the_trained_heads(self, drawn, at):
        _, _, figure = drawn("ceilings", "quick")
        rows, heads = table("S1"), table("S3")
        rows = rows.loc[(rows["vocab_size"] == 64) & rows["hidden_size"].isin([2, 4, 16, 64]) & rows["model"].isna()]
        rows = rows.assign(p=1 / (1 + 63 * np.exp(-rows["attained_gap"])))
        wanted = rows.groupby(["hidden_size", "norm_product"])["p"].mean().reset_index()[["norm_product", "p"]]
        heads = heads.query(
            "teacher == 'det' and vocab_size == 64 and label_smoothing == 0 and temperature == 1 and softcap.isna()"
            " and hidden_size in (4, 16, 64)"
        )
        of_one = heads.assign(m=heads["norm_product"].round(4)).groupby(["hidden_size", "m"])["min_target_probability"]
        open_ones = of_one.mean().reset_index()
        open_ones = open_ones.loc[open_ones["m"] <= 1.02 * rows["norm_product"].max()]
        both = [*wanted.itertuples(index=False), *open_ones[["m", "min_target_probability"]].itertuples(index=False)]
        assert len(both) > 30
        np.testing.assert_allclose(at(figure.axes[0]), sorted(both), rtol=2e-5)

    def test_no_point_is_above_the_ceiling_of_its_colour(self, drawn):
        """The drawn line of each hidden size, read off between its points."""
        first = drawn("ceilings", "quick")[2].axes[0]
        lines = ceilings_of(first)
        assert len(lines) == 4
        for container in first.containers:
            points = container.lines[0]
            x, y = points.get_data()
            line = lines[points.get_markeredgecolor()]
            assert (y <= np.interp(x, *line.get_data()) + 2e-3).all()  # the line has 200 corners
        assert sum(len(c.lines[0].get_xdata()) for c in first.containers) > 30

    def test_the_line_of_a_hidden_size_ends_at_its_name_and_the_highest_is_the_simplex(self, drawn):
        first = drawn("ceilings", "quick")[2].axes[0]
        marks = [line for line in first.get_lines() if line.get_transform() is first.transAxes]
        names = [text.get_text() for text in first.texts if text.get_text().isdecimal()]
        assert names == ["2", "4", "16", "64"]
        for name, mark in zip(names, marks, strict=True):
            line = ceilings_of(first)[mark.get_color()]
            end = first.transAxes.inverted().transform(first.transData.transform((0, line.get_ydata()[-1])))[1]
            assert mark.get_ydata()[0] == pytest.approx(end, abs=0.06), name
        m, p = line.get_data()
        np.testing.assert_allclose(p, 1 / (1 + 63 * np.exp(-m * 64 / 63)), rtol=1e-9)  # D = V

    def test_shapes_stand_at_their_bracket_and_the_line_solves_the_simplex(self, drawn, at):
        _, _, figure = drawn("ceilings", "quick")
        ax, caps = figure.axes[2], table("caps").drop_duplicates("model")
        middles = sorted(zip(caps["vocab_size"], (caps["needed_m_90"] + caps["enough_m_90"]) / 2, strict=True))
        np.testing.assert_allclose(at(ax), middles, rtol=2e-5)
        (line,) = lines_of(ax)
        v, m = line.get_data()
        np.testing.assert_allclose(1 / (1 + (v - 1) * np.exp(-m * v / (v - 1))), 0.9)
        written = [text.get_text() for text in ax.texts]
        for model, size in zip(caps["model"], caps["hidden_size"], strict=True):
            name = model.split("/")[-1].removeprefix("Meta-")
            assert any(text.startswith(name[:6]) and f", {size}" in text for text in written), model


class TestPhase:
    def test_points_are_the_means_over_seeds(self, drawn, at):
        figure, rows = drawn("phase", "quick")[2], table("S2")
        means = rows.groupby(["vocab_size", "share"])[["confidence", "entropy"]].mean().reset_index()
        wanted = zip(means["share"], means["confidence"], strict=True)
        np.testing.assert_allclose(at(figure.axes[0]), sorted(wanted), rtol=2e-5)
        share = means["entropy"] / np.log(means["vocab_size"])
        np.testing.assert_allclose(at(figure.axes[1]), sorted(zip(means["share"], share, strict=True)), rtol=2e-5)

    def test_the_exact_line_is_the_mean_over_draws(self, drawn):
        """At V = 256, against the mean over drawn logits."""
        share, confidence = lines_of(drawn("phase", "quick")[2].axes[0])[0].get_data()
        rng = np.random.default_rng(0)
        for at in (10, 30, 50):
            z = share[at] * np.sqrt(2 * np.log(256)) * rng.standard_normal((20_000, 256))
            p = np.exp(z - z.max(-1, keepdims=True))
            p = 1 / p.sum(-1)
            assert confidence[at] == pytest.approx(p.mean(), abs=4 * p.std() / 20_000**0.5)

    def test_the_critical_line(self, drawn):
        (line,) = lines_of(drawn("phase", "quick")[2].axes[2], "0.1")
        np.testing.assert_allclose(line.get_ydata(), np.sqrt(2 * np.log(line.get_xdata())))

    def test_crossings_lie_between_the_measured_spreads_that_enclose_the_level(self, drawn):
        rows = drawn("phase", "quick")[1]
        crossings, draws = (rows.loc[rows["kind"] == kind] for kind in ("crossing", "draws"))
        assert set(crossings["level"]) == {0.1, 0.5}  # .9 is beyond the quick spreads
        for row in crossings.itertuples():
            one = draws.loc[draws["vocab_size"] == row.vocab_size].sort_values("logit_std")
            below, above = one.loc[one["confidence"] < row.level], one.loc[one["confidence"] > row.level]
            assert below["logit_std"].max() < row.logit_std < above["logit_std"].min()

    def test_heads_are_the_transition_table(self, drawn, at):
        ax, rows = drawn("phase", "quick")[2].axes[3], table("transition")
        fall = rows["confidence_plain"] - rows["confidence_smoothed"]
        wanted = zip(rows["predicted_activity"].clip(lower=0.01), fall, strict=True)
        np.testing.assert_allclose(at(ax), sorted(wanted), rtol=2e-5, atol=1e-9)
        (exception,) = rows.index[(fall > 0.01) & (rows["predicted_activity"] > 1)]  # as the caption says
        assert round(rows["activity_index"][exception], 2) == 0.37
