"""The table of growing sizes, made small on a CPU."""

import csv
import json
from itertools import pairwise

import pytest

from kernel.benchmark import scale


def test_sizes_double_and_slopes_are_between_neighbours(tmp_path):
    output = tmp_path / "scale.csv"
    assert scale.main(["--device", "cpu", "--scale", "1024", "--rounds", "1", "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["grows"] for row in rows] == ["tokens"] * 7 + ["vocab_size"] * 6
    for before, row in pairwise(rows):
        if row["grows"] != before["grows"]:
            assert not row["slope"]
            continue
        assert int(row[row["grows"]]) == 2 * int(before[row["grows"]])
        assert 2 ** float(row["slope"]) == pytest.approx(float(row["ms"]) / float(before["ms"]), rel=1e-2)
        work = int(row["tokens"]) * int(row["vocab_size"]) * int(row["hidden_size"])
        assert float(row["ms_per_product"]) == pytest.approx(1e12 * float(row["ms"]) / work, rel=1e-2)
    config = json.loads(output.with_suffix(".json").read_text())["config"]
    assert (config["scale"], config["label_smoothing"]) == (1024, 0.1)


def test_the_sizes_reach_what_was_asked():
    by_tokens, by_classes = scale._series(1)
    assert [shape.n for shape in by_tokens.shapes][:: len(by_tokens.shapes) - 1] == [2048, 131072]
    assert [shape.vocab_size for shape in by_classes.shapes][:: len(by_classes.shapes) - 1] == [32768, 2**20]
