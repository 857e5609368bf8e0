"""The benchmark runs anywhere at a reduced scale, and its table says what was measured."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import replace

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from kernel.benchmark import __main__ as command
from kernel.benchmark import measure
from kernel.benchmark.__main__ import CASES, COLUMNS, main
from kernel.benchmark.problems import Shape, make_data
from kernel.benchmark.rivals import Case, rivals

SHAPE = Shape("small", 64, 300, 32)


@pytest.fixture(scope="module")
def data():
    return make_data(SHAPE, torch.float32, torch.device("cpu"))


def test_table(tmp_path):
    output = tmp_path / "kernel.csv"
    arguments = ["--shapes", "GPT-2", "--scale", "512", "--rounds", "2", "--device", "cpu", "--output", str(output)]
    assert main([*arguments, "--only", "eager", "chunked", "Liger", "cut"]) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    measured = [r for r in rows if not r["skipped"]]
    assert {r["implementation"] for r in measured} >= {"matmul", "three products", "chunked", "eager"}
    assert all(float(r["ms_low"]) <= float(r["ms"]) <= float(r["ms_high"]) for r in measured if r["ms_low"])
    assert any(r["skipped"] for r in rows)
    gradients = [r for r in measured if r["mode"] == "loss and gradients" and r["implementation"] == "chunked"]
    assert all(float(r["input_gradient_error"]) < 1e-5 for r in gradients if r["ignored"] == "0.0")
    samples = list(csv.DictReader((tmp_path / "kernel_samples.csv").read_text().splitlines()))
    assert len(samples) == 2 * len(measured)
    sidecar = json.loads((tmp_path / "kernel.json").read_text())
    assert sidecar["versions"]["torch"] == torch.__version__
    assert sidecar["rounds"] == 2


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_rivals_compute_the_same_loss(data, softcap):
    case = Case(label_smoothing=0.1, softcap=softcap)
    exact = measure.exact_gradients(data, case)
    compared = []
    for rival in rivals(2**20):
        if rival.refuses(case, torch.device("cpu")) or rival.name == "torch.compile":
            continue
        assert max(measure.errors(rival.make(case), data, case, exact)) < 1e-5, rival.name
        compared.append(rival.name)
    assert {"chunked", "eager"} <= set(compared)


def test_the_three_products_are_those_of_the_loss(data):
    case = Case(label_smoothing=0.2)
    _, input_gradient, weight_gradient = measure.exact_gradients(data, case)
    logits, by_weight, by_input = measure.three_products(data, case, torch.device("cpu"))()
    torch.testing.assert_close(logits, data.hidden @ data.weight.T)
    torch.testing.assert_close(by_weight.double() / SHAPE.n, weight_gradient, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(by_input.double() / SHAPE.n, input_gradient, rtol=1e-5, atol=1e-7)


def test_data_are_peaked_and_zipfian():
    large = make_data(Shape("large", 2000, 5000, 256), torch.float32, torch.device("cpu"))
    z = (large.hidden @ large.weight.T).detach()
    loss = torch.nn.functional.cross_entropy(z, large.target).item()
    assert 0.5 < loss < 4 < math.log(5000)
    counts = torch.bincount(large.target, minlength=5000)
    assert counts[0] > 5 * counts[20] > 0


def test_cases_and_refusals():
    assert {c.softcap for c in CASES} == {None, 30.0}
    names = {r.name: r for r in rivals(2**20)}
    smoothed, plain = Case(), Case(label_smoothing=0.0)
    assert names["torch, chunked"].refuses(smoothed, torch.device("cpu"))
    assert names["cut-cross-entropy, exact"].refuses(plain, torch.device("cpu"))
    assert names["eager"].refuses(plain, torch.device("cpu")) is None


def test_a_rival_that_fails_is_reported(data):
    def broken(data):
        raise RuntimeError("out of luck")

    rival = next(r for r in rivals(2**20) if r.name == "eager")
    rival = replace(rival, make=lambda case: broken)
    device = torch.device("cpu")
    rows = [row for row, _ in command._compare_case(SHAPE, Case(), data, data, [rival], torch.float32, device, 1)]
    assert rows[-1]["skipped"] == "RuntimeError: out of luck"
