"""The table of sparse gradients: its rows, rounds in which no run follows the same one, and times that are doubted."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import pairwise

import pytest
import torch
from sparse_problems import DEVICE, text_like

pytest.importorskip("triton")
pytest.importorskip("safetensors")

from safetensors.torch import save_file

from kernel import GradientTolerance
from kernel.benchmark import measure, sparse, sparse_calls
from kernel.benchmark.measure import Turn, exact_gradients
from kernel.benchmark.problems import read_both_orders, read_states
from kernel.benchmark.rivals import Case
from kernel.benchmark.rounds import in_rounds, orders

pytestmark = pytest.mark.usefixtures("worth_it_at_any_size")
CPU = torch.device("cpu")


@pytest.fixture
def states(tmp_path):
    """A head whose own order is at random, states of text, and others for the order."""
    hidden, weight, target = text_like(0, tokens=4, tiles=8, shuffled=True)
    sample, _, _ = text_like(1, tokens=4, tiles=8)
    path = tmp_path / "tiny.safetensors"
    save_file({"hidden": hidden, "weight": weight, "target": target, "sample": sample}, path)
    return path


@pytest.mark.parametrize("number", [1, 2, 5, 14, 15, 22])
@pytest.mark.parametrize("seed", range(3))
def test_no_run_follows_another_in_most_rounds(number, seed):
    found = list(orders(number, 8, seed))
    assert all(sorted(order) == list(range(number)) for order in found)
    if number >= 8:
        before = Counter(pair for order in found for pair in pairwise(order))
        assert max(before.values()) <= 1 + number % 2
        assert len({order.index(0) for order in found}) >= 6  # nor is it at the same place


def test_a_square_has_each_pair_of_neighbours_once():
    pairs = [pair for order in orders(6, 6) for pair in pairwise(order)]
    assert len(pairs) == len(set(pairs)) == 6 * 5


def test_each_run_is_timed_behind_the_same_work(monkeypatch):
    done = []
    runs = [lambda i=i: done.append(i) for i in range(4)]
    clock = iter(range(10**6))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))  # seconds
    after = []
    found = in_rounds(runs, lambda: done.append("product"), 3, CPU, 20.0, after.append)
    assert [len(times) for times in found] == [3, 3, 3, 3]
    assert done == [x for run in done[1::2] for x in ("product", run)]
    assert sorted(done[1::2]) == sorted([0, 1, 2, 3] * 4)  # the first round warms up
    assert sorted(after) == sorted([0, 1, 2, 3] * 3)
    assert {turn for times in found for turn in times} == {Turn(1e3, 1e3, 1e3)}


def test_the_order_is_that_of_the_sorted_problem(states):
    data, own, order = read_both_orders(states, 100, CPU)
    assert torch.equal(order.rows(own.weight), data.weight)
    assert torch.equal(order.places(own.target), data.target)
    assert not torch.equal(own.weight, data.weight)
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(read_states(states, 100, CPU), (data, own), strict=True))


def test_sorting_in_each_call_gives_the_gradient_of_the_models_head(states):
    """Beside float64 of the head as it is, with tiles left out."""
    data, own, order = read_both_orders(states, 64, torch.device(DEVICE))
    told = GradientTolerance(0.1)
    entry = sparse_calls.Contender("", Case(), own, sparse_calls._sorting(Case(), order, told), 0.1, told)
    exact = exact_gradients(own, Case())
    columns = sparse._described(entry, exact, own.hidden.device)
    assert 0 < told.weight_active < 1
    for side in ("input", "weight"):
        assert 0 < float(columns[f"{side}_gradient_error"]) <= float(columns[f"{side}_bound"]) <= 0.1
    assert data.weight.grad is None  # the sorted head is no leaf of it


@pytest.mark.parametrize(
    ("changes", "shares", "said"),
    [
        ({}, {"0.1200"}, []),
        ({}, {"0.1204", "0.1200"}, []),
        ({"active": ""}, {""}, []),
        ({"product_ms": "6.300"}, set(), ["at another clock: the product ahead took 6.300 ms, of all calls 6.600"]),
        ({"ms_low": "9.500"}, {"0.1200"}, ["10.00 ms of rounds that differ: quartiles 9.50 and 10.60"]),
        ({}, {"0.1200", "1.0000"}, ["10.00 ms of different calls: active tiles 0.1200, 1.0000"]),
        ({}, {"nan"}, ["different calls: active tiles 0.1200, nan"]),
        ({}, {"0.1200", "nan"}, ["different calls: active tiles 0.1200, nan"]),
        (dict.fromkeys(("ms", "products", "ms_low", "ms_high", "product_ms"), "nan") | {"active": ""}, set(), []),
    ],
)
def test_doubts(changes, shares, said):
    row = {"ms": "10.000", "products": "1.5", "ms_low": "9.700", "ms_high": "10.600", "product_ms": "6.700"}
    found = list(sparse._doubts(row | {"active": "0.1200"} | changes, 6.6, shares))
    assert len(found) == len(said)
    assert all(part in doubt for part, doubt in zip(said, found, strict=True))


def test_a_run_that_found_another_clock_is_doubted():
    """As one did behind calls of little power in most of its rounds."""
    times = [Turn(12.3, 0, 6.8), *[Turn(10.1, 0, 5.6)] * 4, *[Turn(12.4, 0, 6.7)] * 2]
    row = sparse._time_columns(times, 6.7) | {"active": ""}
    assert (row["ms"], row["ms_low"], row["ms_high"], row["product_ms"]) == ("10.100", "10.100", "12.400", "5.600")
    assert [doubt.split()[2] for doubt in sparse._doubts(row, 6.7, set())] == ["at", "of"]
    assert sparse._time_columns([Turn(2.0, 0, 1.0)], 1.0)["ms_high"] == "2.000"


def test_the_command_writes_its_table(states, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sparse_calls, "_TOLERANCES", (0.01,))
    out = tmp_path / "sparse.csv"
    options = ["--states", str(states), "--tokens", "64", "--rounds", "1", "--device", "cpu", "--output", str(out)]
    assert sparse.main(options) == 0, capsys.readouterr()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert not any(row["skipped"] for row in rows)
    smoothed = [(row["implementation"], float(row["tolerance"])) for row in rows if row["label_smoothing"] == "0.1"]
    assert smoothed == [
        ("default", 0),
        ("all kept", 0),
        ("sparse", 0.01),
        ("sparse, 384 MiB", 0.003),
        ("default, as they are", 0),
        ("all kept, as they are", 0),
        ("sparse, as they are", 0.003),
        ("sparse, as they are, each a try", 0.003),
        ("sparse, sorting in each call", 0.01),
    ]
    for row in rows:
        assert 0 < float(row["ms_low"]) <= float(row["ms"]) <= float(row["ms_high"])
        assert float(row["product_ms"]) > 0
        if row["input_bound"]:
            assert float(row["input_bound"]) <= float(row["tolerance"])
    of = {row["implementation"]: row for row in rows if row["label_smoothing"] == "0.1"}
    assert of["sparse, sorting in each call"]["active"] == of["sparse"]["active"]  # the same tiles
    assert json.loads(out.with_suffix(".json").read_text())["config"]["problem"] == "tiny"
