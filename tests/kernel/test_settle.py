"""How long after a pause a product takes another time: by when a run began, over the last ones."""

from __future__ import annotations

import csv
import itertools
import json

import pytest
import torch

from kernel.benchmark import settle
from kernel.benchmark.measure import Turn

CPU = torch.device("cpu")


def test_runs_count_by_when_they_begin(monkeypatch):
    """One that takes 8 ms for 100 ms after a pause, and then 10."""

    def runs(run, number, device):
        begins = [8.0 * i for i in range(13)]
        begins += [104 + 10.0 * i for i in range(number - len(begins))]
        return [(begin, 8.0 if begin < 100 else 10.0) for begin in begins]

    monkeypatch.setattr(settle, "_runs", runs)
    monkeypatch.setattr(settle, "turn", lambda *_, **__: Turn(8.0, 8.0))
    rows = list(settle._rows(lambda: None, CPU, pauses=3, pause=0.0))
    shares = {(row["from_ms"], row["to_ms"]): float(row["of_last"]) for row in rows}
    assert shares == {
        **dict.fromkeys([(0, 20), (20, 40), (40, 80), (80, 120)], 0.8),
        **dict.fromkeys([(120, 160), (160, 240), (240, 320), (320, 480)], 1.0),
    }
    assert [row["runs"] for row in rows[:3]] == [9, 6, 15]


def test_ranges_in_which_no_run_begins_have_no_row(monkeypatch):
    monkeypatch.setattr(settle, "_runs", lambda *_: [(0.0, 130.0), (130.0, 130.0)])
    monkeypatch.setattr(settle, "turn", lambda *_, **__: Turn(130.0, 130.0))
    rows = list(settle._rows(lambda: None, CPU, pauses=1, pause=0.0))
    assert [(row["from_ms"], row["runs"], row["of_last"]) for row in rows] == [(0, 1, "1.0000"), (120, 1, "1.0000")]


def test_each_run_begins_where_the_one_before_ends():
    found = settle._runs(lambda: None, 5, CPU)
    assert found[0][0] == 0.0
    assert len(found) == 5
    for (begin, ms), (following, _) in itertools.pairwise(found):
        assert begin + ms == pytest.approx(following, abs=1e-6)


def test_table(tmp_path):
    output = tmp_path / "settle.csv"
    arguments = ["--shapes", "Gemma-2-2B", "--scale", "64", "--pauses", "3", "--pause-ms", "0"]
    assert settle.main([*arguments, "--device", "cpu", "--output", str(output)]) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert tuple(rows[0]) == settle.COLUMNS
    assert {(row["tokens"], row["vocab_size"], row["hidden_size"]) for row in rows} == {("128", "4000", "36")}
    assert rows[-1]["of_last"] == "1.0000"
    assert all(float(row["ms_low"]) <= float(row["ms"]) <= float(row["ms_high"]) for row in rows)
    about = json.loads((tmp_path / "settle.json").read_text())
    assert about["command"].endswith(
        "kernel.benchmark.settle --shapes Gemma-2-2B --pauses 3 --pause-ms 0 --scale 64 --device cpu"
    )
