"""The figure on real models: what is drawn is what the table says."""

import pytest
from tuned_pairs import made

from paper_figures import real


@pytest.fixture(scope="module")
def drawn():
    table = made()
    return real.prepare({"real_gemma": table, "real_smollm2": table.loc[table["within"].isna()]})


def test_the_vocabulary_is_varied_inside_one_model(drawn):
    found = drawn.query("kind == 'vocabulary'").set_index(["name", "vocab_size"])
    assert sorted(set(drawn["vocab_size"].dropna())) == [12288, 16384, 262144]
    assert found.loc[("fall", 262144), "effect"] == pytest.approx(0.08)
    assert found.loc[("gain", 12288), "effect"] == pytest.approx(0.08)
    assert found.loc[("accuracy", 262144), "effect"] == found.loc[("rms", 262144), "effect"] == 0
    assert set(found["seeds"]) == {3}


def test_stages_are_before_after_and_smoothed(drawn):
    bins = drawn.query("kind == 'bin'")
    assert set(bins["bin"]) == {4, 9}  # three questions are no bin
    assert bins.groupby("name").size().to_dict() == {"after": 2, "before": 2, "smoothed": 2}
    files = drawn.query("kind == 'file'").set_index(["name", "source"])["ece"]
    assert files["before", "all"] == pytest.approx(0.101)
    assert files["after", "mmlu_test"] == pytest.approx(0.181)
    assert files["smoothed", "arc_test"] == pytest.approx(0.131)
    assert set(drawn.query("kind == 'file'")["rms"].round(3)) == {0.1}
    course = drawn.query("kind == 'course' and view == 'response'")
    assert course.groupby("model")["epoch"].unique().map(sorted).tolist() == [[0, 1, 2, 8]] * 2


def test_the_figure_is_laid_out(drawn, check_layout):
    figure = real.make(drawn, preset="full")
    check_layout(figure)
    assert len(figure.axes) == 6
