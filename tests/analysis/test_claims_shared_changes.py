"""Candidates for the fall of tuned language models, on tables with planted falls."""

import numpy as np
import pandas as pd
import pytest

from analysis.claims.shared_changes import accuracy, cells, main, verdict

FALLS = {"response": 0.08, "text": 0.05}


def table(shares, *, split="scored", views=FALLS, seeds=3, **columns):
    """Tunings of b 0 and .1 at epochs 1 and 2; each candidate predicts a share of the measured fall."""
    lines = []
    for seed in range(seeds):
        for b in (0.0, 0.1):
            for epoch in (1, 2):
                for view, fall in views.items():
                    fall = fall + 0.01 * (seed - 1) if epoch == 2 else 3 * fall
                    line = {
                        "temperature": 1.0, "softcap": np.nan, "epochs": 2, "epoch": epoch, "data_seed": seed,
                        "label_smoothing": b, "split": split, "view": view, "reading": "as_trained",
                        "confidence": 0.7 - (fall if b else 0), "activity": -0.5, "rows": 1000, **columns,
                    }  # fmt: skip
                    if not b:
                        line |= {f"{kind}_fall_0.1": share * fall for kind, share in shares.items()}
                        line |= {"affine_gap_0.1": 1e-3}
                    lines += [line, {**line, "split": "train", "confidence": 0.9}]
    return pd.DataFrame(lines)


def test_the_candidate_of_least_error_within_a_fifth_predicts():
    found = cells({"t": table({"scale": 2.0, "gain": 1.1, "low_rank": 0.5, "affine": 0.95})})
    assert found["measured"].tolist() == pytest.approx([0.08, 0.05])
    assert found["seeds"].tolist() == [3, 3]
    lines = accuracy(found)
    of = lines.loc[lines["group"] == "all cells"].set_index("predictor")
    assert of.loc["scale", ["error", "ratio"]].tolist() == pytest.approx([1.0, 0.5])
    assert of.loc["affine", "error"] == pytest.approx(0.05)
    assert of.loc["affine", "r2"] == pytest.approx(1 - 0.05**2 * (0.08**2 + 0.05**2) / (2 * 0.015**2))
    assert of.loc["affine", "largest_error"] == pytest.approx(0.004)
    assert of.loc["clipped", "predicted"] == 2
    name, text = verdict(lines)
    assert (name, "it predicts them" in text, "measured 1.05 of predicted" in text) == ("affine", True, True)
    assert verdict(lines, "view text")[0] == "affine"


def test_none_does_where_the_best_is_further_off():
    lines = accuracy(cells({"t": table({"scale": 2.0, "gain": 1.5, "low_rank": 0.5, "affine": 0.7})}))
    name, text = verdict(lines)
    assert name == "none"
    assert text.startswith("all cells: none does; the best is affine: error 0.30 of 2 cells")


def test_a_candidate_that_lacks_a_cell_is_not_compared():
    """Not solved for one seed, or of an older table; falls below .01 are no cells."""
    made = table({"gain": 1.0, "affine": 1.0})
    made.loc[(made["view"] == "text") & (made["data_seed"] == 1), "affine_gap_0.1"] = 0.03
    lines = accuracy(cells({"t": made}))
    predicted = lines.loc[lines["group"] == "all cells"].set_index("predictor")["predicted"]
    assert predicted[["scale", "gain", "affine"]].tolist() == [0, 2, 1]
    assert verdict(lines)[0] == "gain"
    assert verdict(lines, "view response")[0] in ("gain", "affine")
    old = accuracy(cells({"t": table({}, split="test", views={"tokens": 0.3, "letter": 0.003})}))
    assert verdict(old)[0] == "not decided"
    assert set(old["cells"]) == {1}


def test_runs_that_were_not_asked_for_predictions_are_no_cells():
    """Neither a whole setting nor one seed of it; a table without any has its rules of thumb judged."""
    asked, other = table({"affine": 1.0}, rows=1000, vocabulary=0), table({}, rows=2000, vocabulary=7)
    asked.loc[asked["data_seed"] == 2, "affine_fall_0.1"] = np.nan
    found = cells({"t": pd.concat([asked, other])})
    assert found["vocabulary"].tolist() == [0, 0]
    assert found["seeds"].tolist() == [2, 2]
    assert found["measured"].tolist() == pytest.approx([0.075, 0.045])
    assert verdict(accuracy(found))[0] == "affine"
    assert cells({"t": other})["seeds"].tolist() == [3, 3]


def test_the_command(tmp_path, capsys):
    path, out = tmp_path / "real_tuning_1.csv", tmp_path / "falls.csv"
    table({"scale": 1.1, "gain": 1.2, "low_rank": 0.5, "affine": 0.5}).to_csv(path, index=False)
    assert main([str(path), "--file", str(out)]) == 0
    said = capsys.readouterr().out
    assert "all cells: scale: error 0.10 of 2 cells" in said
    assert "expected before the runs" in said
    assert len(pd.read_csv(out)) == 4 * 6
    pd.DataFrame({"split": ["test"]}).to_csv(path, index=False)
    assert main([str(path), "--file", str(out)]) == 2
    assert "without the column 'view'" in capsys.readouterr().err
