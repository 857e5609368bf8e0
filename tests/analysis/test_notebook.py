"""Controls where somebody is there, a plain figure elsewhere; a look; tables from the checkout."""

import sys
from types import SimpleNamespace

import matplotlib as mpl
import pandas as pd
import pytest

from analysis import notebook

pytest.importorskip("IPython", reason="the notebooks extra is not installed")
pytest.importorskip("ipywidgets", reason="the notebooks extra is not installed")


def shell(allow_stdin):
    """An IPython shell whose present request allows questions or not, as a front end or nbclient sends it."""
    message = {"content": {"allow_stdin": allow_stdin}}
    return SimpleNamespace(kernel=SimpleNamespace(get_parent=lambda channel: message))


@pytest.fixture(name="shown")
def _shown(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    return shown


def test_a_front_end_that_answers_questions_is_somebody(monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell(True))
    assert notebook._somebody_is_there()


def test_controls_appear_where_somebody_is_there(shown, monkeypatch):
    monkeypatch.setattr(notebook, "_somebody_is_there", lambda: True)
    drawn = []

    def draw(norm_product=2.0, name="a", other=7):
        drawn.append((norm_product, name, other))

    notebook.explore(draw, norm_product=(1.0, 3.0, 0.5), name=["b", "a"])
    (panel,) = shown
    slider, menu, _ = panel.children
    assert (slider.description, slider.min, slider.max, slider.step, slider.value) == ("norm product", 1, 3, 0.5, 2)
    assert (menu.options, menu.value) == (("b", "a"), "a")
    assert not slider.continuous_update
    slider.value = 3.0
    assert drawn[-1] == (3.0, "a", 7)


@pytest.mark.parametrize("present", [shell(False), SimpleNamespace(), None], ids=["headless", "terminal", "script"])
def test_the_figure_is_drawn_once_with_its_defaults_elsewhere(present, shown, monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: present)
    drawn = []
    notebook.explore(lambda x=2.0, y="a": drawn.append((x, y)), x=(1.0, 3.0, 0.5))
    assert drawn == [(2.0, "a")]
    assert not shown


def test_the_figure_is_drawn_once_without_ipywidgets(monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell(True))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    drawn = []
    notebook.explore(lambda x=2.0: drawn.append(x), x=(1.0, 3.0, 0.5))
    assert drawn == [2.0]


def test_what_cannot_work_is_refused_everywhere():
    with pytest.raises(TypeError, match=r"parameters of draw, \['x'\], got \['y'\]"):
        notebook.explore(lambda x=1: None, y=(0, 1))
    with pytest.raises(TypeError, match=r"a default for every parameter, got \(x, y=1\)"):
        notebook.explore(lambda x, y=1: None, y=(0, 1))


def test_the_look_is_colour_blind_safe_and_without_boxes():
    import seaborn

    with mpl.rc_context():
        notebook.look()
        colours = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
        assert list(map(mpl.colors.to_rgb, colours)) == list(seaborn.color_palette("colorblind"))
        assert not mpl.rcParams["axes.spines.top"]
        assert not mpl.rcParams["legend.frameon"]


def test_committed_tables_are_read_and_a_missing_one_says_what_to_do(tmp_path, monkeypatch):
    assert "K1" in set(notebook.committed_table("quick/verdicts")["claim"])
    (tmp_path / "quick").mkdir()
    pd.DataFrame({"a": [1, 2]}).to_csv(tmp_path / "quick" / "S1.csv", index=False)
    monkeypatch.setattr(notebook, "committed_folder", lambda: tmp_path)
    assert notebook.committed_table("quick/S1")["a"].tolist() == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"no table S1.csv .* python -m analysis.study"):
        notebook.committed_table("S1")


def test_what_is_said_fits_the_page_and_keeps_its_words(capsys):
    text = "Calibration. " + "On this text the model is over-confident. " * 5 + "\nCeiling. No cap stands in the way."
    notebook.say(text)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 88
    assert lines.count("") == 1
    assert " ".join(lines).split() == text.split()
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        notebook.say(text, width=0)
