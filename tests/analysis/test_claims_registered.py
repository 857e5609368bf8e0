"""What was registered of S11 and S12 is judged part by part, and the committed tables of parts are those of the rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.claims.parts import ClaimPart, KnownFindings, every, holds_within
from analysis.claims.registered import registered
from analysis.claims.sizes import Grid
from analysis.claims.statistics import Effect
from analysis.command import committed_folder
from analysis.lab.tables import find_table, read_table

DATA = committed_folder()
GRIDS = {"S11": Grid([256, 4096, 65536], [16, 64, 256]), "S12": Grid([1024, 8192, 65536], [32, 256])}
NAN = math.nan


def effect(mean, low, high):
    return Effect(mean, low, high, 3, 1)


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (effect(0.5, 0.4, 0.6), "yes"),
        (effect(0.5, 0.0, 1.0), "yes"),
        (effect(0.5, -0.1, 1.0), "open"),
        (effect(1.0, 0.9, 1.1), "open"),
        (effect(1.5, 1.2, 1.8), "no"),
        (effect(-0.5, -0.8, -0.2), "no"),
        (effect(0.5, NAN, NAN), "not measured"),
    ],
)
def test_a_part_holds_where_its_whole_interval_does(found, word):
    assert holds_within(found, 0.0, 1.0) == word


def test_one_cell_that_fails_fails_all_and_is_shown():
    wide, fails, good = effect(0.2, -9.0, 9.4), effect(-0.2, -0.3, -0.1), effect(0.5, 0.4, 0.6)
    assert every("K1", "rise", "above 0", [good, wide, fails], 0.0) == ClaimPart("K1", "rise", "above 0", fails, "no")
    assert every("K1", "rise", "above 0", [good, wide], 0.0).holds == "open"
    assert every("K1", "rise", "above 0", [good], 0.0) == ClaimPart("K1", "rise", "above 0", good, "yes")


def test_what_was_not_found_has_no_numbers():
    known = KnownFindings(
        pd.DataFrame([{"claim": "K1", "finding": "x", "cell": NAN, **effect(1.0, 0.0, 2.0)._asdict()}])
    )
    assert known("K1", "x").mean == 1.0
    assert known("K1", "x", "V=3").cells == 0
    assert known.at("K1", "x") == []


@pytest.mark.parametrize("name", GRIDS)
def test_the_committed_parts_are_those_of_the_committed_tables(name):
    table: Any = read_table(Path(find_table(DATA, name) or ""))
    found = registered(name, table, pd.read_csv(DATA / f"{name}_findings.csv"), GRIDS[name])
    kept: Any = pd.read_csv(DATA / f"{name}_predictions.csv")
    pd.testing.assert_frame_equal(found.loc[:, ["part", "asked", "holds"]], kept[["part", "asked", "holds"]])
    numbers = ["found", "low", "high"]
    np.testing.assert_allclose(found[numbers].to_numpy(float), kept[numbers].to_numpy(float), rtol=1e-4, atol=1e-6)
    if name == "S11":
        rows = table.query("symbols == 'live' and not tied and distinct == 0 and pretraining_smoothing == 0")
        rows = rows.query("epoch == 16 and distribution == 'shifted' and reading == 'as_trained'")
        rows = rows.query("hidden_size != 64 and vocab_size != 4096")
        confidence = rows.pivot_table("confidence", ["vocab_size", "hidden_size", "data_seed"], "method")
        falls = confidence[["b=0.1", "b=0.2"]].rsub(confidence["b=0"], axis=0)
        ratio = np.exp(np.log(falls["b=0.2"] / falls["b=0.1"]).mean())
        line = kept.set_index("part").loc["fall of b = 0.2 over that of b = 0.1"]
        assert line["found"] == pytest.approx(ratio, rel=1e-4)
        assert line["cells"] == 4


def test_the_law_is_scored_as_it_was_registered():
    """S11: shared changes not near everywhere, an affine map nearer than both, and near at D = 16."""
    table: Any = read_table(Path(find_table(DATA, "S11") or ""))
    findings = pd.read_csv(DATA / "S11_findings.csv")
    affine = findings["finding"] == "affine_ratio"
    findings.loc[affine, "mean"] = 1.1
    findings.loc[affine & (findings["cell"] == "V=4096; D=16"), "mean"] = 1.3
    findings.loc[affine & (findings["cell"] == "V=256; D=256"), "mean"] = 9.0
    parts = registered("S11", table, findings, GRIDS["S11"])
    law = parts[parts["claim"] == "law"].set_index("part")
    assert law["asked"].tolist() == ["below 1", "below 1", "1", "1", "1"]
    assert law["holds"].tolist() == ["yes", "yes", "no", "no", "yes"]
    nearer = law.loc["share of (V, D) where an affine map is nearer to the fall than one scale and a gain"]
    assert (nearer["found"], nearer["cells"]) == (pytest.approx(8 / 9), 9)
    narrow = law.loc["share of (V, D) where an affine map is within 20 % of the fall, D = 16"]
    assert (narrow["found"], narrow["cells"]) == (pytest.approx(2 / 3), 3)
