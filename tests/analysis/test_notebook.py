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


@pytest.fixture(name="interact")
def _interact(monkeypatch):
    calls = []
    monkeypatch.setattr("ipywidgets.interact", lambda draw, **controls: calls.append((draw, controls)))
    return calls


def test_controls_appear_where_somebody_is_there(interact, monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell(True))
    drawn = []

    def draw(x=2.0):
        drawn.append(x)

    notebook.explore(draw, x=(1.0, 3.0, 0.5))
    assert interact == [(draw, {"x": (1.0, 3.0, 0.5)})]
    assert not drawn


@pytest.mark.parametrize("present", [shell(False), SimpleNamespace(), None], ids=["headless", "terminal", "script"])
def test_the_figure_is_drawn_once_with_its_defaults_elsewhere(present, interact, monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: present)
    drawn = []
    notebook.explore(lambda x=2.0, y="a": drawn.append((x, y)), x=(1.0, 3.0, 0.5))
    assert drawn == [(2.0, "a")]
    assert not interact


def test_the_figure_is_drawn_once_without_ipywidgets(monkeypatch):
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell(True))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    drawn = []
    notebook.explore(lambda x=2.0: drawn.append(x), x=(1.0, 3.0, 0.5))
    assert drawn == [2.0]


@pytest.mark.parametrize("controls", [{"y": (0, 1)}, {"x": (0, 1)}], ids=["unknown", "without a default"])
def test_a_control_that_cannot_work_is_refused_everywhere(controls):
    (name,) = controls
    with pytest.raises(TypeError, match=f"parameters of draw that have a default, got '{name}'"):
        notebook.explore(lambda x: None, **controls)


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
    monkeypatch.setattr(notebook, "_DATA", tmp_path)
    assert notebook.committed_table("quick/S1")["a"].tolist() == [1, 2]
    with pytest.raises(FileNotFoundError, match=r"no table S1.csv .* python -m analysis.study"):
        notebook.committed_table("S1")
