"""Cases are measured side by side, each rival's loss is the same one, and what cannot run says why."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import apart_rivals
import pytest
import torch

from kernel.benchmark import compare, measure
from kernel.benchmark.apart import Apart
from kernel.benchmark.compare import GROUPS
from kernel.benchmark.cute_rivals import cute_rivals
from kernel.benchmark.prepare import Entry
from kernel.benchmark.problems import Shape, make_data
from kernel.benchmark.rivals import VARIANTS, Case, rivals
from kernel.fused.launch import launch_table, set_launch_table

SHAPE = Shape("small", 64, 300, 32)


@pytest.fixture(scope="module")
def data():
    return make_data(SHAPE, torch.float32, torch.device("cpu"))


def test_cases_of_a_group_are_measured_against_one_product(data):
    rivals_ = [r for r in rivals(2**20) if r.name == "eager"]
    rows = [row for row, _ in compare._Group(SHAPE, data, 2).compare((Case(), Case(ignored=0.8)), rivals_)]
    assert [(r["implementation"], r["ignored"]) for r in rows] == [
        ("matmul", 0.0),
        ("three products", 0.0),
        ("eager", 0.0),
        ("eager", 0.8),
    ]
    assert len({r["matmul_ms"] for r in rows}) == 1


def test_heads_beyond_the_first_are_measured_plain(monkeypatch):
    measured = []
    monkeypatch.setattr(compare._Group, "compare", lambda group, cases, chosen: measured.extend(cases) or iter(()))
    for plain in (True, False):
        list(compare.compare(replace(SHAPE, plain=plain), torch.float32, torch.device("cpu"), 1, ["eager"]))
    assert measured == [
        Case(),
        Case(ignored=0.8),
        Case(label_smoothing=0.0),
        *(case for group in GROUPS for case in group),
    ]


def test_what_is_slow_is_timed_in_two_rounds(data, monkeypatch):
    seen = {"slow": 30.0, "fast": 2.0}
    entries = [Entry(Case(), "matmul", run=lambda: None)]
    entries += [Entry(Case(), name, turn=lambda ms=ms: measure.Turn(ms, ms)) for name, ms in seen.items()]
    monkeypatch.setattr(measure, "turn", lambda *_, **__: measure.Turn(1.0, 1.0))
    assert [len(times) for times in compare._Group(SHAPE, data, 5).time(entries)] == [5, 2, 5]


def test_a_rival_that_fails_is_reported(data):
    def broken(data):
        raise RuntimeError("out of luck")

    rival = next(r for r in rivals(2**20) if r.name == "eager")
    rival = replace(rival, make=lambda case: broken)
    rows = [row for row, _ in compare._Group(SHAPE, data, 1).compare([Case()], [rival])]
    assert rows[-1]["skipped"] == "RuntimeError: out of luck"


def test_what_runs_in_a_process_of_its_own_takes_its_turns():
    cpu, case = torch.device("cpu"), Case(label_smoothing=0.0)
    names = ["eager", "broken", "ends at once", "elsewhere"]
    other = Apart(torch.float32, cpu, names, apart_rivals.implementations)
    other.shape = replace(SHAPE, n=32)
    other._ask("prepare", case, "eager")
    other.shape = SHAPE  # the same process goes on
    try:
        measured = compare._Group(SHAPE, make_data(SHAPE, torch.float32, cpu), 2, other).compare([case], [])
        found = {row["implementation"]: row for row, _ in measured}
        assert list(found) == ["matmul", *names]
        assert float(found["eager"]["ms"]) > 0
        assert float(found["eager"]["input_gradient_error"]) < 1e-5, "of the same numbers"
        assert found["broken"]["skipped"] == "RuntimeError: out of luck"
        assert found["ends at once"]["skipped"] == "its process ended with status 7"
        assert found["elsewhere"]["skipped"] == "not installed: elsewhere"
        other._process.kill()
        other._process.join()
        entry = Entry(case, "eager", turn=partial(other._ask, "turn", case, "eager"))
        assert compare._turn(entry, cpu, lambda: None) is None
        assert entry.columns["skipped"] == "its process ended during the rounds"
    finally:
        other.close()


def test_float64_gradients_do_not_depend_on_the_split(data):
    case = Case(label_smoothing=0.1, softcap=3.0)
    whole, parts = (measure.exact_gradients(data, case, tokens) for tokens in (SHAPE.n, 10))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


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


@pytest.mark.parametrize("softcap", [None, 30.0])
def test_rivals_compute_the_same_loss(data, softcap):
    case = Case(label_smoothing=0.1, softcap=softcap)
    exact = measure.exact_gradients(data, case)
    compared = []
    for rival in rivals(2**20):
        if rival.refuses(case, torch.device("cpu")) or rival.name == "torch.compile" or rival.frontier:
            continue
        assert max(measure.errors(rival.make(case), data, case, exact)) < 1e-5, rival.name
        compared.append(rival.name)
    assert {"chunked", "eager"} <= set(compared)


def test_cases_and_refusals():
    assert {c.softcap for group in GROUPS for c in group} == {None, 30.0}
    names = {r.name: r for r in rivals(2**20)}
    smoothed, plain = Case(), Case(label_smoothing=0.0)
    assert names["torch, chunked"].refuses(smoothed, torch.device("cpu"))
    assert names["cut-cross-entropy, exact"].refuses(plain, torch.device("cpu"))
    assert names["eager"].refuses(plain, torch.device("cpu")) is None


def test_rivals_in_cute_say_what_is_missing():
    found = {rival.name: rival for rival in cute_rivals()}
    assert {
        "quack scaled-exp, chunk 4096",
        "Liger-Kernel SM90 CuTe",
        "Liger-Kernel CuTe, float32 sums, chunk 16",
    } <= set(found)
    for rival in found.values():
        reason = rival.refuses(Case(label_smoothing=0.0), torch.device("cpu"))
        assert reason == "needs a CUDA device" or reason.startswith("not installed: ")


def test_variants_of_our_launches_are_measured_beside_them(data):
    names = [r.name for r in rivals(2**20, list(VARIANTS))]
    assert {"triton, default", *(f"triton, default, {variant}" for variant in VARIANTS)} <= set(names)
    cpu, table = torch.device("cpu"), launch_table(torch.device("cpu"), torch.float32)
    try:
        rival = next(r for r in rivals(0, ["four parts"]) if r.name.endswith("four parts"))
        rival.make(Case(gradients=False))(data)
        assert launch_table(cpu, torch.float32).logit_gradient.parts == 4
        next(r for r in rivals(0) if r.name == "triton, default").make(Case(gradients=False))(data)
        assert launch_table(cpu, torch.float32) is table
    finally:
        set_launch_table(cpu, torch.float32, None)
