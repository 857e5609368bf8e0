"""The figures of the kernel and of the verdicts show their tables, number by number."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from analysis.claims.findings import headlines
from kernel.benchmark.cute_rivals import cute_rivals
from kernel.benchmark.problems import SHAPES
from kernel.benchmark.rivals import rivals
from paper_figures import kernel, tables, verdicts
from paper_figures.style import THEORY_COLOUR


@pytest.fixture(scope="module")
def bench():
    rows = pd.read_csv(tables.DATA / "kernel.csv")
    return rows[(rows["mode"] == "loss and gradients") & rows["softcap"].isna() & (rows["ignored"] == 0)]


@pytest.fixture(scope="module")
def few(bench):
    """Rows and rounds of what has one setting, at three heads."""
    several = r", chunk \d+|triton, [\d.]+ [GM]iB"
    shapes = ("Gemma-2-2B", "Llama-3-8B", "GPT-2")
    found = []
    for table in (bench, pd.read_csv(tables.DATA / "kernel_samples.csv")):
        kept = ~table["implementation"].str.contains(several) | (table["implementation"] == "triton, 32 MiB")
        found.append(table[kept & table["shape"].isin(shapes)])
    return found


class TestKernel:
    def test_every_implementation_that_ran_is_a_point_of_every_shape(self, drawn, bench, at):
        figure = drawn("kernel", "quick")[2]
        ran = bench.loc[bench["ms"].notna() & bench["peak_mib"].notna()]
        smoothed = ran.loc[ran["label_smoothing"] == 0.1]
        rest = ran.loc[(ran["label_smoothing"] == 0) & ~ran["implementation"].str.startswith("triton")]
        rest = rest.loc[~rest["implementation"].isin(smoothed["implementation"])]
        assert {name.split(",")[0] for name in rest["implementation"]} >= {"quack scaled-exp", "cut-cross-entropy"}
        sizes = bench.drop_duplicates("shape").set_index("shape")[["tokens", "vocab_size", "hidden_size"]]
        sizes = {shape: r"$\times$".join(map(str, size)) for shape, *size in sizes.itertuples()}
        titles = {ax.get_title(loc="left").split(" ")[-1]: ax for ax in figure.axes[:-1]}
        shapes = {shape: titles[size] for shape, size in sizes.items()}
        assert len(titles) == len(shapes)
        for shape, ax in shapes.items():
            rows = pd.concat([smoothed, rest])
            rows = rows.loc[rows["shape"] == shape]
            wanted = sorted(zip((rows["peak_mib"] / 1024).map("{:.6g}".format).astype(float), rows["ms"], strict=True))
            np.testing.assert_allclose(at(ax), wanted, rtol=2e-5)

    def test_what_has_no_smoothing_is_open(self, drawn):
        _, rows, figure = drawn("kernel", "quick")
        series = kernel._series(rows["implementation"])
        looks = kernel._looks(series)
        assert len({(look.marker, look.colour) for look in looks.values()}) == len(looks)
        plain = {(looks[name].marker, looks[name].colour) for name in series[rows["label_smoothing"] == 0]}
        smooth = {(looks[name].marker, looks[name].colour) for name in series[rows["label_smoothing"] > 0]}
        assert len(plain) == 5
        assert not plain & smooth
        for ax in figure.axes:
            drawn_so = {
                (line.get_marker(), line.get_markeredgecolor()): line.get_markerfacecolor() == "white"
                for line in ax.get_lines()
                if line.get_marker() in {look.marker for look in looks.values()}
            }
            assert len(drawn_so) >= len(smooth)
            assert {look: look in plain for look in drawn_so} == drawn_so

    def test_the_floors_are_the_gradients_and_three_products_at_the_best_rate(self, drawn, bench):
        axes = drawn("kernel", "quick")[2].axes
        first = next(ax for ax in axes if "Gemma-2-2B" in ax.get_title(loc="left"))
        across, up = (line for line in first.get_lines() if line.get_color() == THEORY_COLOUR)
        if across.get_ydata()[0] == 0:  # which of the two is drawn first says nothing
            across, up = up, across
        work = bench["tokens"] * bench["vocab_size"] * bench["hidden_size"]
        three = bench.loc[bench["implementation"] == "three products", "ms"]
        best = max((work / bench["matmul_ms"]).max(), (3 * work[three.index] / three).max() if len(three) else 0)
        assert across.get_ydata()[0] == pytest.approx(3 * 8192 * 256_000 * 2304 / best)
        elements = (8192 + 256_000) * 2304
        assert up.get_xdata()[0] == pytest.approx(elements * 2 / 2**30, rel=1e-3)  # bfloat16
        times = bench.loc[bench["ms"].notna() & bench["peak_mib"].notna(), "ms"]
        # None is faster but by what the clock differs: GPT-2's products ask for little power ahead of every call.
        assert (times > 0.97 * (3 * work / best)[times.index]).all()

    def test_errors_are_the_larger_of_both_gradients(self, drawn, bench, at):
        last = drawn("kernel", "quick")[2].axes[-1]
        names = {v: k for k, v in kernel._NAMES.items()}
        labels = [names.get(text.get_text(), text.get_text()) for text in last.get_yticklabels()]
        bars = {round(c.lines[0].get_ydata()[0]): c for c in last.containers}
        for row, name in enumerate(labels):
            rows = bench.loc[(kernel._series(bench["implementation"]) == name) & bench["ms"].notna()]
            rows = rows.loc[rows["label_smoothing"] == rows["label_smoothing"].max()]
            worst = 1000 * np.maximum(rows["input_gradient_error"], rows["weight_gradient_error"])
            assert bars[-row].lines[0].get_xdata()[0] == pytest.approx(worst.median())
            np.testing.assert_allclose(bars[-row].lines[2][0].get_segments()[0][:, 0], [worst.min(), worst.max()])

    def test_times_are_medians_between_order_statistics_of_the_rounds(self, drawn):
        rounds = pd.read_csv(tables.DATA / "kernel_samples.csv").query(
            "shape == 'Qwen2.5-0.5B' and label_smoothing == .1 and softcap.isna() and ignored == 0"
            " and mode == 'loss and gradients' and implementation == 'Liger-Kernel'"
        )["ms"]
        rows = drawn("kernel", "quick")[1].query("shape == 'Qwen2.5-0.5B' and implementation == 'Liger-Kernel'")
        assert len(rounds) == 4  # 2 / 2^4 = .125 is the chance that all lie on one side of the median
        numbers = rows[["ms", "ms_low", "ms_high"]].iloc[0].tolist()
        assert numbers == pytest.approx([rounds.median(), rounds.min(), rounds.max()], abs=6e-4)

    def test_the_interval_of_a_median_covers_it(self):
        draws = np.random.default_rng(0).exponential(size=(4000, 20))
        inside = [low <= np.log(2) <= high for low, high in map(kernel.median_interval, draws)]
        assert np.mean(inside) == pytest.approx(0.959, abs=0.01)  # ranks 6 and 15 of 20
        assert kernel.median_interval([3.0, 1.0]) == (1.0, 3.0)

    def test_workspaces_and_chunks_lie_on_lines_of_one_look_each(self, few, check_layout):
        more = [few[0]], [few[1]]
        for i, name in enumerate(
            ("triton, 1 GiB", "triton, 902 MiB", "quack scaled-exp, chunk 64", "quack scaled-exp, chunk 9")
        ):
            for table, new in zip(few, more, strict=True):
                new.append(table.loc[table["implementation"] == "eager"].assign(implementation=name))
            more[0][-1]["peak_mib"] = 2000.0 + 900 * i
        both = [pd.concat(parts, ignore_index=True) for parts in more]
        rows = kernel.prepare(dict(zip(("kernel", "kernel_samples"), both, strict=True)))
        figure = kernel.make(rows)
        lines = [
            line for line in figure.axes[0].get_lines() if line.get_marker() == "None" and len(line.get_xdata()) > 1
        ]
        counts = sorted(len(line.get_xdata()) for line in lines if line.get_color() != THEORY_COLOUR)
        assert counts[-2:] == [2, 5]
        names = [text.get_text() for text in figure.axes[-1].get_yticklabels()]
        assert "ours, other workspaces" in names
        assert "quack scaled-exp" in names
        check_layout(figure)

    def test_ten_heads_with_every_rival_are_drawn(self, bench, check_layout):
        rounds = pd.read_csv(tables.DATA / "kernel_samples.csv")
        heads = [(s.name, s.n, s.vocab_size, s.hidden_size) for s in SHAPES]
        added = [f"triton, {mib} MiB" for mib in (152, 902, 2152)]
        added += [r.name for r in (*rivals(0), *cute_rivals()) if r.name not in set(bench["implementation"])]
        new = [[], []]
        for name, *size in heads:
            for made, table in zip(new, (bench, rounds), strict=True):
                rows = table.loc[table["shape"] == "Gemma-2-2B"]
                eager = rows.loc[(rows["implementation"] == "eager") & (rows["label_smoothing"] == 0.1)]
                both = pd.concat([rows, *(eager.assign(implementation=rival) for rival in added)]).assign(shape=name)
                times = [column for column in both if column.endswith("ms")]
                made.append(both.assign(**(both[times] * math.prod(size) / (8192 * 256_000 * 2304))))
            new[0][-1] = new[0][-1].assign(**dict(zip(("tokens", "vocab_size", "hidden_size"), size, strict=True)))
        both = {
            name: pd.concat(x, ignore_index=True) for name, x in zip(("kernel", "kernel_samples"), new, strict=True)
        }
        table = kernel.prepare(both)
        figure = kernel.make(table)
        assert len(figure.axes) == len(heads) + 1
        looks = kernel._looks(kernel._series(table["implementation"]))
        assert len({(look.marker, look.colour) for look in looks.values()}) == len(looks)
        assert not any(name.endswith(" MiB") for name in looks if name != "triton, 32 MiB")
        first = figure.axes[0].get_legend()
        assert [text.get_text() for text in first.get_texts()][-1] == "quack"
        for ax in figure.axes[:-1]:
            told = [text.get_text() for text in ax.texts if " above, " in text.get_text()]
            assert [text[:5] for text in told] == ["1 abo"], "chunked alone"
        check_layout(figure)

    def test_no_marker_is_cut_by_the_upper_edge(self, drawn):
        assert kernel._upper(pd.Series([10.0, 12, 30]), 20) == pytest.approx(1.15 * 30)  # 27 would cut it
        assert kernel._upper(pd.Series([10.0, 12, 80]), 20) == pytest.approx(27)
        for ax in drawn("kernel", "quick")[2].axes[:-1]:
            upper = ax.get_ylim()[1]
            times = np.concatenate(
                [line.get_ydata() for line in ax.get_lines() if line.get_marker() not in ("None", "_")]
            )
            assert not ((times > upper / 1.1) & (times < upper * 1.1)).any()

    def test_a_new_rival_gets_a_look_and_its_name_and_products_are_no_rival(self, few, check_layout):
        more = [few[0]], [few[1]]
        for name in ("quack 0.6", "three products"):
            for table, new in zip(few, more, strict=True):
                new.append(table.loc[table["implementation"] == "eager"].assign(implementation=name))
        assert more[0][1]["ms"].gt(0).any()
        more[0][1]["peak_mib"] = 2000.0
        both = [pd.concat(parts, ignore_index=True) for parts in more]
        rows = kernel.prepare(dict(zip(("kernel", "kernel_samples"), both, strict=True)))
        assert "three products" not in set(rows["implementation"])
        figure = kernel.make(rows)
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert labels == ["ours", "PyTorch", "Liger-Kernel", "cut-cross-entropy", "quack"]
        assert "quack 0.6" in [text.get_text() for text in figure.axes[-1].get_yticklabels()]
        looks = kernel._looks(rows["implementation"])
        assert len({(look.marker, look.colour) for look in looks.values()}) == len(looks)
        check_layout(figure)


class TestVerdicts:
    @pytest.fixture
    def both(self):
        return {name: tables.read(name, "quick", tables.DATA) for name in ("verdicts", "findings")}

    @pytest.fixture
    def table(self, both):
        return headlines(**both)

    def test_every_claim_stands_with_its_verdict_effect_and_numbers(self, drawn, table):
        figure = drawn("verdicts", "quick")[2]
        texts = figure.axes[0].texts
        tops = {text.get_text(): text.get_position()[1] for text in texts if text.get_text() in set(table["claim"])}
        assert list(tops) == table["claim"].tolist()
        edges = [*tops.values(), np.inf]
        for row, top, below in zip(table.itertuples(), edges, edges[1:], strict=False):
            words = " ".join(t.get_text() for t in texts if top - 1 <= t.get_position()[1] < below - 1)
            words = words.replace("\u00a0", " ")
            assert row.statement in words
            assert row.effect in words
            assert f"{row.mean:.3g} [{row.low:.3g}, {row.high:.3g}]" in words
            assert (f" {row.verdict}" in words) or (f" {row.verdict} " in words)

    def test_the_mark_tells_the_verdict_without_colour(self, drawn, table):
        ax = drawn("verdicts", "quick")[2].axes[0]
        marks = [line for line in ax.get_lines() if line.get_markersize() == 4.5]
        kinds = [(line.get_marker(), line.get_fillstyle(), line.get_markerfacecolor()) for line in marks]
        wanted = {"supported": ("o", "full", "#00224e"), "depends on": ("o", "left", "#00224e")}
        assert kinds == [wanted[verdict] for verdict in table["verdict"]]
        assert (
            len(
                {
                    str(mark.get("marker")) + str(mark.get("fillstyle")) + mark["mfc"]
                    for mark in verdicts._MARKS.values()
                }
            )
            == 4
        )

    def test_bars_lie_on_the_side_of_their_sign_and_hold_the_mean(self, drawn, table):
        ax = drawn("verdicts", "quick")[2].axes[0]
        left, width = verdicts._PLACES["strip"]
        for row, bar in zip(table.itertuples(), ax.containers, strict=True):
            low, high = bar.lines[2][0].get_segments()[0][:, 0]
            mean = bar.lines[0].get_xdata()[0]
            reference = 1 if row.claim == "K7" else 0
            assert low <= mean <= high
            assert left <= low
            assert high <= left + width + 1e-9
            for value, x in ((row.low, low), (row.mean, mean), (row.high, high)):
                assert np.sign(round(value - reference, 9)) == np.sign(round(x - left - verdicts._ZERO * width, 9))

    def test_effects_in_probabilities_share_a_scale_with_ticks_and_are_filled(self, drawn, table):
        ax = drawn("verdicts", "full")[2].axes[0]
        rows = headlines(*(tables.read(name, "full", tables.DATA) for name in ("verdicts", "findings")))
        left, width = verdicts._PLACES["strip"]
        zero = left + verdicts._ZERO * width
        common = []
        for row, bar in zip(rows.itertuples(), ax.containers, strict=True):
            own = "ECE" not in row.effect and "confidence" not in row.effect
            assert mpl.colors.same_color(bar.lines[0].get_markerfacecolor(), "white") == own, row.claim
            if not own:
                common.append((bar.lines[0].get_xdata()[0] - zero) / row.mean)
        assert len(common) == 6
        assert common == pytest.approx([common[0]] * 6)
        ticks = [line.get_xdata() for line in ax.get_lines() if line.get_marker() == "|" and line.get_zorder() == 0]
        assert len(ticks) == 6
        for marks in ticks:
            np.testing.assert_allclose((marks - zero) / common[0], 0.1 * np.arange(1, len(marks) + 1))
        written = {text.get_text(): text.get_position() for text in ax.texts}
        assert written["0"][0] == pytest.approx(zero)
        assert written[f"{0.1 * len(ticks[0]):.1g}"][0] == pytest.approx(ticks[0][-1])

    def test_a_prediction_that_failed_is_bold(self, drawn):
        texts = drawn("verdicts", "quick")[2].axes[0].texts
        column = [t for t in texts if t.get_position()[0] == verdicts._PLACES["predicted"][0]][1:]
        bold = [t.get_text() for t in column if t.get_fontweight() == "bold"]
        assert bold == ["supported", "refuted", "not decided"]  # K1, K6, K8

    def test_the_real_model_has_a_line_where_it_was_judged(self, both, table, check_layout):
        real = pd.DataFrame({"claim": ["K2", "K1"], "verdict": ["refuted", "supported"]})
        rows = verdicts.prepare({**both, "instruction_verdicts": real})
        assert rows["real_model"].tolist() == ["supported", "refuted"] + [""] * (len(table) - 2)
        figure = verdicts.make(rows, preset="full")
        written = [t.get_text() for t in figure.axes[0].texts]
        assert written.index("on questions: supported") < written.index("on questions: refuted")
        heights = {t.get_text(): t.get_position()[1] for t in figure.axes[0].texts if "on questions" in t.get_text()}
        small = [
            line for line in figure.axes[0].get_lines() if line.get_marker() in "oX" and line.get_markersize() == 3.2
        ]
        small = [line for line in small if line.get_xdata()[0] < verdicts._PLACES["effect"][0]]
        assert [line.get_marker() for line in small] == ["o", "X"]
        assert [line.get_ydata()[0] for line in small] == pytest.approx(list(heights.values()))
        check_layout(figure)

    def test_models_tuned_on_pairs_have_a_line_each(self, both, table, check_layout):
        real = pd.DataFrame({"claim": ["K4", "K1"], "verdict": ["refuted", "depends on"]})
        rows = verdicts.prepare({**both, "instruction_verdicts": real[1:], "real_gemma_verdicts": real})
        figure = verdicts.make(rows, preset="full")
        written = [t.get_text() for t in figure.axes[0].texts]
        assert written.index("on questions: depends on") + 1 == written.index("Gemma, pairs: depends on")
        assert "Gemma, pairs: refuted" in written
        assert not any("SmolLM2" in text for text in written)
        check_layout(figure)

    def test_an_unfinished_grid_says_so(self, both, check_layout):
        table = both["verdicts"]
        table["cells_not_run"] = ["3 of 40"] + ["0 of 40"] * (len(table) - 1)
        figure = verdicts.make(verdicts.prepare(both), preset="full")
        words = " ".join(text.get_text() for text in figure.axes[0].texts)
        assert words.count("not run") == 1
        assert "3 of 40 not run" in words
        check_layout(figure)

    def test_a_claim_without_a_table_is_drawn_without_numbers(self, both, check_layout):
        table = both["verdicts"]
        table.loc[0, ["verdict", "effect", "finding", "cell"]] = ["not decided", np.nan, np.nan, np.nan]
        figure = verdicts.make(verdicts.prepare(both), preset="full")
        assert len(figure.axes[0].containers) == len(table) - 1
        texts = figure.axes[0].texts
        assert "nan" not in " ".join(text.get_text() for text in texts)
        column = [t for t in texts if t.get_position()[0] == verdicts._PLACES["predicted"][0]]
        assert column[1].get_fontweight() == "normal"  # nothing was found that could contradict the prediction
        check_layout(figure)
