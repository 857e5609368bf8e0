"""The committed table of public heads is what the command makes, and obeys the theory."""

import csv
import json

import pytest

from analysis import caps, caps_table
from analysis.command import committed_folder
from analysis.head_shapes import HEAD_SHAPES
from analysis.lab.provenance import SCHEMA

COMMITTED = committed_folder() / "caps.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("caps") / "new" / "caps.csv"
    caps_table.main([str(path)])
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_committed_table_is_up_to_date(made):
    new, old = read(made), read(COMMITTED)
    assert [list(row) for row in new] == [list(row) for row in old]
    for fresh, kept in zip(new, old, strict=True):
        for name, value in fresh.items():
            if name in ("model", "softcap", "tied", "source", "confidence_cap_name"):
                assert value == kept[name]
            else:
                # the solver of the programme may change with scipy, its certificate keeps any answer valid
                close = 1e-3 if name == "aligned_linear_program" else 1e-5
                assert float(value) == pytest.approx(float(kept[name]), rel=close), name


def test_the_table_says_how_it_was_made(made):
    for path in (made, COMMITTED):
        origin = json.loads(path.with_suffix(".json").read_text())
        assert origin["command"] == "python -m analysis.caps_table"
        assert set(SCHEMA) <= set(origin)
        assert origin["note"] == "no seeds: nothing is random"


def test_rows_cover_every_shape_and_norm_product(made):
    table = read(made)
    assert len({row["model"] for row in table}) == len(HEAD_SHAPES) == 12
    assert len(table) == 12 * len(caps_table.NORM_PRODUCTS)


def test_order_of_the_columns(made):
    for row in read(made):
        value = {
            name: float(row[name]) for name in ("single_token", "simplex", "rank", "confidence_cap", "random_code")
        }
        assert (
            value["random_code"] <= value["rank"] <= value["simplex"] * (1 + 1e-6) <= value["single_token"] * (1 + 2e-6)
        )
        if not row["softcap"]:
            assert value["confidence_cap"] <= value["rank"] * (1 + 1e-6)
        for name in ("50", "90", "target"):
            assert float(row[f"needed_m_{name}"]) <= float(row[f"enough_m_{name}"])


def test_needed_norm_product_is_where_the_cap_meets_the_confidence(made):
    row = read(made)[0]
    v, d = int(row["vocab_size"]), int(row["hidden_size"])
    assert caps.rank_cap(float(row["needed_m_90"]), v, d) == pytest.approx(0.9, abs=1e-5)


def test_at_these_sizes_norms_and_not_geometry_are_the_cap(made):
    """What any head needs and what is enough for random rows differ by at most 1.3 % without a softcap."""
    for row in read(made):
        for name in ("50", "90", "target"):
            ratio = float(row[f"enough_m_{name}"]) / float(row[f"needed_m_{name}"])
            assert ratio < (1.05 if row["softcap"] else 1.013)


def test_an_impossible_gap_needs_an_infinite_norm():
    assert caps_table.needed_norm_product(lambda m: min(m, 3.0), 4.0) == float("inf")


def test_every_source_is_an_address():
    assert all(shape.source.startswith("https://") for shape in HEAD_SHAPES)
