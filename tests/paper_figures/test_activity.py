"""The figure against the theory it draws, and as a function of a table and nothing else."""

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scipy.optimize

from paper_figures import activity
from paper_figures.__main__ import main
from paper_figures.style import THEORY_COLOUR

from analysis.smoothing import activity_index, optimal_gap  # isort: skip


@pytest.fixture
def table():
    """Two teachers, two hidden sizes, with an interval in every direction."""
    cells = []
    for teacher, hidden_size, rho, index, fall in [
        ("det", 64, 0.5, 5.0, 0.0), ("det", 64, 2.0, 1e-6, 0.0984), ("lowrank", 4, 1.2, 0.5, 0.03),
    ]:  # fmt: skip
        cell = {"teacher": teacher, "vocab_size": 64, "hidden_size": hidden_size, "norm_coefficient": rho / 5}
        cell |= {"temperature": 1.0, "label_smoothing": 0.1, "seeds": 3}
        for name, value in [("effectiveness_ratio", rho), ("activity_index", index), ("confidence_fall", fall)]:
            cell |= {name: value, f"{name}_low": 0.9 * value, f"{name}_high": 1.1 * value}
        cells.append(cell)
    return pd.DataFrame(cells)[activity.COLUMNS]


def simplex_loss(gap, vocab_size, smoothing):
    """Smoothed loss of logits (gap, 0, ..., 0)."""
    lse = np.logaddexp(gap, np.log(vocab_size - 1))
    return lse - (1 - smoothing) * gap - smoothing * gap / vocab_size


@pytest.mark.parametrize("rho", [0.3, 0.99, 1.0, 1.05, 1.7])
@pytest.mark.parametrize("vocab_size", [8, 256, 50_000])
def test_the_line_is_what_bounded_gaps_minimise(vocab_size, rho):
    most = rho * optimal_gap(0.1, vocab_size)
    confidence = []
    for smoothing in (0.0, 0.1):
        best = scipy.optimize.minimize_scalar(
            simplex_loss, bounds=(0, most), args=(vocab_size, smoothing), method="bounded", options={"xatol": 1e-9}
        ).x
        confidence.append(1 / (1 + (vocab_size - 1) * np.exp(-best)))
    fall = activity.predicted_fall(np.array([rho]), vocab_size, 0.1)[0]
    assert fall == pytest.approx(confidence[0] - confidence[1], abs=1e-6)


@pytest.mark.parametrize("vocab_size", [8, 256, 50_000])
def test_on_a_simplex_the_fall_is_linear_in_the_activity_index(vocab_size):
    rho, b = np.linspace(0.2, 1.6, 15), 0.1
    gap = rho * optimal_gap(b, vocab_size)
    p = 1 / (1 + (vocab_size - 1) * np.exp(-gap))
    rest = (1 - p) / (vocab_size - 1)
    entropy = -p * np.log(p) - (1 - p) * np.log(rest)
    uniform = -(np.log(p) + (vocab_size - 1) * np.log(rest)) / vocab_size
    index = activity_index(entropy, -np.log(p), uniform, b)
    linear = b * (vocab_size - 1) / vocab_size * np.maximum(0, 1 - index)
    np.testing.assert_allclose(activity.predicted_fall(rho, vocab_size, b), linear, atol=1e-9)


def test_every_cell_is_a_point_on_both_sides(table):
    left, right = activity.make(table, preset="quick").axes
    for ax, name in ((left, "effectiveness_ratio"), (right, "activity_index")):
        points = sorted(float(c.lines[0].get_xdata()[0]) for c in ax.containers)
        assert points == sorted(table[name].clip(lower=0.01 if ax is right else None))
        assert (
            len(ax.get_lines()) == 5 * len(table) + 2
        )  # points with the caps of two bars; theory; where A or rho is 1


def test_a_cell_is_read_from_its_marker(table):
    """Shape for the teacher, fill for the temperature, colour for the hidden size, size for V, bars for intervals."""
    other = table.iloc[[2]].assign(temperature=0.25, vocab_size=256, hidden_size=16, effectiveness_ratio=1.9)
    left, _ = activity.make(pd.concat([table, other], ignore_index=True), preset="quick").axes
    at = {round(float(c.lines[0].get_xdata()[0]), 6): c for c in left.containers}
    det, small, sharp = (at[x].lines[0] for x in (2.0, 1.2, 1.9))
    assert [line.get_marker() for line in (det, small, sharp)] == ["o", "^", "^"]
    assert mpl.colors.same_color(det.get_markerfacecolor(), det.get_markeredgecolor())
    assert mpl.colors.same_color(sharp.get_markerfacecolor(), "white")
    assert len({mpl.colors.to_hex(line.get_markeredgecolor()) for line in (det, small, sharp)}) == 3
    assert sharp.get_markersize() > small.get_markersize()
    (horizontal,), (vertical,) = (
        [bar.get_segments()[0][:, axis] for bar in [at[1.2].lines[2][axis]]] for axis in (0, 1)
    )
    np.testing.assert_allclose(horizontal, [0.9 * 1.2, 1.1 * 1.2])
    np.testing.assert_allclose(vertical, [0.9 * 0.03, 1.1 * 0.03])


def test_cells_in_one_place_are_rings(table):
    twin = table.iloc[[1]].assign(hidden_size=256)
    left, _ = activity.make(pd.concat([twin, table], ignore_index=True), preset="quick").axes
    outer, inner = (c.lines[0] for c in left.containers if round(float(c.lines[0].get_xdata()[0]), 6) == 2.0)
    assert outer.get_markersize() > inner.get_markersize() + 2
    assert not mpl.colors.same_color(outer.get_markerfacecolor(), inner.get_markerfacecolor())


def test_the_order_of_the_rows_changes_nothing(table):
    def draw(rows):
        file = io.BytesIO()
        activity.make(rows, preset="quick").savefig(file, format="pdf", metadata={"CreationDate": None})
        return file.getvalue()

    assert draw(table) == draw(table.iloc[::-1])


def test_the_lines_are_the_theory(table):
    left, right = activity.make(table, preset="quick").axes
    for ax in (left, right):
        (line,) = [line for line in ax.get_lines() if line.get_color() == THEORY_COLOUR]
        x, y = line.get_data()
        if ax is left:
            np.testing.assert_allclose(y, activity.predicted_fall(x, 64, 0.1))
        else:
            np.testing.assert_allclose(y, 0.1 * 63 / 64 * np.maximum(0, 1 - x))


def test_the_preset_is_in_the_figure(table):
    assert "preset full, 3 seeds" in [text.get_text() for text in activity.make(table, preset="full").texts]


def test_drawing_twice_gives_the_same_bytes_and_leaves_matplotlib_alone(table):
    before = {name: mpl.rcParams[name] for name in mpl.rcParams}  # looking settles the backend, which is chosen late

    def draw():
        file = io.BytesIO()
        activity.make(table, preset="quick").savefig(file, format="pdf", metadata={"CreationDate": None})
        return file.getvalue()

    assert draw() == draw()
    assert dict(mpl.rcParams) == before


def test_tables_that_do_not_fit_are_refused(table):
    with pytest.raises(ValueError, match=r"it lacks \['seeds'\]\.$"):
        activity.make(table.drop(columns="seeds"), preset="quick")
    mixed = pd.concat([table, table.assign(label_smoothing=0.2)])
    with pytest.raises(ValueError, match=r"one label_smoothing, got \[0\.1, 0\.2\]\.$"):
        activity.make(mixed, preset="quick")


class TestCommand:
    def test_it_redraws_the_committed_table_byte_for_byte(self, tmp_path, capsys):
        for folder in ("one", "two"):
            assert main(["--out", str(tmp_path / folder)]) == 0
        printed = capsys.readouterr().out
        for name in ("activity.csv", "activity.pdf", "activity.png"):
            content = (tmp_path / "one" / name).read_bytes()
            assert content == (tmp_path / "two" / name).read_bytes()
            assert len(content) > 1000
            assert str(tmp_path / "one" / name) in printed
        assert "S3.csv" in printed  # what it read

    def test_it_simulates_then_resumes(self, tmp_path, monkeypatch, capsys):
        from analysis.study import collapse

        few = [
            c for c in collapse.configs("quick") if c.teacher.vocab_size == 64 and c.hidden_size == 4
            and c.label_smoothing in (0, 0.1) and c.teacher.seed < 2
        ]  # fmt: skip
        monkeypatch.setattr(collapse, "EXPERIMENT", replace(collapse.EXPERIMENT, configs=lambda preset: few))
        command = ["--simulate", "--workers", "1", "--only", "activity", "--out", str(tmp_path / "a b")]
        assert main(command) == 0
        assert f"{len(few)} computed now" in capsys.readouterr().out
        first = {path.name: path.read_bytes() for path in (tmp_path / "a b").glob("activity.*")}
        assert set(first) == {"activity.csv", "activity.pdf", "activity.png"}
        assert len(pd.read_csv(tmp_path / "a b" / "S3.csv")) == len(few)
        assert main(command) == 0
        assert "0 computed now" in capsys.readouterr().out
        assert {path.name: path.read_bytes() for path in (tmp_path / "a b").glob("activity.*")} == first

    def test_a_missing_table_says_what_to_do(self, tmp_path):
        with pytest.raises(SystemExit, match=r"there is no table .*S3\.csv or .*; make it with --simulate$"):
            main(["--preset", "full", "--out", str(tmp_path)])

    def test_list_names_the_figures(self, capsys):
        assert main(["--list"]) == 0
        assert "activity" in capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--preset", "tiny"], ["--workers", "0"]])
    def test_wrong_arguments_are_refused(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "error" in capsys.readouterr().err
