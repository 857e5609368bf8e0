"""The benchmark runs anywhere at a reduced scale, and its table says what was measured."""

from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import replace
from functools import partial

import apart_rivals
import pytest
import torch
from helpers import Peak, free_launches, refused, write_csv

import kernel.benchmark.__main__ as comparison
from kernel.benchmark import compare, first_call, head_statistics, measure, own_peak, targets
from kernel.benchmark.__main__ import COLUMNS, main
from kernel.benchmark.apart import Apart
from kernel.benchmark.compare import GROUPS
from kernel.benchmark.cute_rivals import cute_rivals
from kernel.benchmark.prepare import Entry
from kernel.benchmark.problems import SHAPES, Data, Shape, make_data
from kernel.benchmark.rivals import VARIANTS, Case, Rival, ours, rivals
from kernel.fused import launch
from kernel.fused.arguments import Head, Scalars
from kernel.fused.call import LossCall
from kernel.fused.compile_ahead import _record
from kernel.fused.launch import launch_table, set_launch_table
from kernel.fused.schedule import schedule
from kernel.fused.token_chunks import Chunks
from kernel.options import LossOptions

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
    assert all(float(r["host_ms"]) > 0 for r in (*measured, *samples))
    sidecar = json.loads((tmp_path / "kernel.json").read_text())
    assert list(sidecar) == ["command", "config", "seeds", "versions", "device", "commit", "wall_seconds"]
    assert sidecar["command"] == (
        "python -m kernel.benchmark --shapes GPT-2 --scale 512 --rounds 2 --only eager chunked Liger cut --device cpu"
    )
    assert sidecar["versions"]["torch"] == torch.__version__
    assert sidecar["config"]["rounds"] == 2
    assert sidecar["config"]["ahead_ms"] == 0, "nothing is queued on a CPU"
    assert sidecar["wall_seconds"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernel.csv", "kernel.json", "kernel_samples.csv"]


def test_rows_of_another_clock_are_doubted():
    """By the product right ahead of each call; calls without one, of an older process, tell nothing."""
    row = dict.fromkeys(COLUMNS, "1") | {"skipped": ""}
    found = [
        (row | {"implementation": name}, [measure.Turn(9.0, 1.0, ms)] * 3) for name, ms in (("a", 6.6), ("b", 6.7))
    ]
    assert not list(comparison._doubts(found))
    found += [
        (row | {"implementation": "c"}, [measure.Turn(9.0, 1.0, 5.6)] * 3),
        (row, [measure.Turn(9.0, 1.0)]),
        (row, []),
    ]
    (doubt,) = comparison._doubts(found)
    assert doubt.endswith("at another clock: the product ahead took 5.600 ms, of all calls 6.600")


def test_a_run_that_is_cut_keeps_its_rows_and_the_earlier_table(tmp_path, monkeypatch, capsys):
    def two_rows(*_):
        for name in ("matmul", "eager"):
            row = dict.fromkeys(COLUMNS, "1") | {"implementation": name, "skipped": ""}
            yield [(row, [measure.Turn(1.0, 0.5)])]
        raise KeyboardInterrupt

    monkeypatch.setattr("kernel.benchmark.__main__.compare", two_rows)
    (tmp_path / "kernel.csv").write_text("earlier")
    assert main(["--device", "cpu", "--output", str(tmp_path / "kernel.csv")]) == 130
    assert capsys.readouterr().err == f"interrupted: 2 rows are kept in {tmp_path / 'kernel.partial.csv'}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("kernel.csv", "kernel.partial.csv", "kernel.partial.json", "kernel.partial_samples.csv")
    ]
    assert (tmp_path / "kernel.csv").read_text() == "earlier"
    for name in ("kernel.partial.csv", "kernel.partial_samples.csv"):
        rows = list(csv.DictReader((tmp_path / name).read_text().splitlines()))
        assert [r["implementation"] for r in rows] == ["matmul", "eager"]


def test_a_run_that_is_cut_goes_on_with_whole_groups(tmp_path, monkeypatch, capsys):
    output = tmp_path / "kernel.csv"
    command = ["--shapes", "GPT-2", "--scale", "512", "--rounds", "1", "--device", "cpu", "--output", str(output)]
    command += ["--only", "eager"]
    original, measured = comparison.compare, []

    def cut_after_one(*arguments):
        for rows in original(*arguments):
            measured.append(rows[0][0])
            yield rows
            if len(measured) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "compare", cut_after_one)
    assert main(command) == 130
    capsys.readouterr()
    assert refused(comparison, [*command[:4], "--rounds", "2", *command[6:], "--resume"], capsys).startswith(
        "resume goes on with the same options, got {'shapes': ['GPT-2'], 'scale': 512, 'rounds': 2,"
    )
    assert main([*command, "--resume"]) == 0
    assert len(measured) == len(GROUPS), "what was there is not measured again"
    rows = list(csv.DictReader(output.read_text().splitlines()))
    cases = [
        (r["label_smoothing"], r["softcap"], r["ignored"], r["mode"]) for r in rows if r["implementation"] != "matmul"
    ]
    assert len(dict.fromkeys(cases)) == sum(map(len, GROUPS))
    assert "--resume" not in json.loads((tmp_path / "kernel.json").read_text())["command"]
    assert not list(tmp_path.glob("*.partial*"))


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


def test_float64_gradients_do_not_depend_on_the_split(data):
    case = Case(label_smoothing=0.1, softcap=3.0)
    whole, parts = (measure.exact_gradients(data, case, tokens) for tokens in (SHAPE.n, 10))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)


def test_first_call_measures_fresh_processes(tmp_path):
    output = tmp_path / "first_call.csv"
    small = ["--shape", "GPT-2", "--scale", "2048", "--device", "cpu"]
    before = os.sched_getaffinity(0)
    assert first_call.main([*small, "--cores", "1", "--processes", "1", "--output", str(output)]) == 0
    assert os.sched_getaffinity(0) == before
    (row,) = csv.DictReader(output.read_text().splitlines())
    assert (row["shape"], row["cores"]) == ("GPT-2", "1")
    assert float(row["first_seconds"]) > 0 < float(row["second_seconds"])
    assert json.loads(output.with_suffix(".json").read_text())["versions"]["torch"] == torch.__version__


def test_the_statistics_are_measured_for_each_number_of_temperatures(tmp_path):
    arguments = ["--device", "cpu", "--scale", "4096", "--rounds", "1", "--out", str(tmp_path / "table.csv")]
    assert head_statistics.main(arguments) == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["temperatures"] for row in rows] == ["0", "1", "8"] * 2
    measured = [row for row in rows if row["temperatures"] != "0"]
    assert all(0 < float(row["ratio"]) < 1000 for row in rows)
    assert all(float(row["lse"]) < 1e-4 and float(row["argmax_differs"]) == 0 for row in measured)
    made = json.loads((tmp_path / "table.json").read_text())
    assert made["command"] == "python -m kernel.benchmark.head_statistics --rounds 1 --scale 4096 --device cpu"
    assert list(made) == ["command", "config", "seeds", "versions", "device", "commit", "wall_seconds"]


def _table(**changed: str) -> list[dict[str, str]]:
    """Rows of Gemma-2-2B that meet everything, but for what is changed: IMPLEMENTATION__COLUMN."""
    names = {
        "matmul": "10", "three products": "30", targets.DEFAULT: "41", targets.SMALL: "42", targets.KEPT: "31",
        "torch.compile": "40", "Liger-Kernel": "100", "cut-cross-entropy, exact": "100",
    }  # fmt: skip
    common = {"shape": "Gemma-2-2B", "label_smoothing": "0.1", "softcap": "", "ignored": "0.0", "skipped": ""}
    common |= {"mode": "loss and gradients", "matmul_ms": "10", "gradient_mib": "1000"}
    common |= {f"{side}_gradient_error": "0.002" for side in ("input", "weight")}
    rows = [{**common, "implementation": n, "ms": ms, "peak_mib": "1200"} for n, ms in names.items()]
    rows[5]["peak_mib"] = "5000"
    rows += [{**r, "label_smoothing": "0.0"} for r in rows if r["implementation"] in (targets.DEFAULT, targets.KEPT)]
    rows[7]["label_smoothing"] = "0.0"
    rows.append({**rows[2], "mode": "loss", "ms": "10.2", "peak_mib": "3"})
    rows.append({**rows[2], "ignored": "0.8", "ms": "9"})
    for key, value in changed.items():
        index, column = key.removeprefix("row").split("__")
        rows[int(index)][column] = value
    return rows


def test_targets_of_a_table_that_meets_all():
    found = list(targets.targets(targets.Table(_table())))
    assert all(t.met for t in found), [str(t) for t in found if not t.met]
    assert (
        len(found) == 5 + 4 + 4 + 3 + 6 + 5 + 2
    )  # what the other rival, which is not there, leaves unjudged is left out
    assert "the three products alone take 3.000" in str(found[4])


def _within(*mib):
    return [f"ours within {number} MiB: time" for number in mib]


_LIGER = [f"Liger-Kernel's time / that of triton, {name}" for name in ("default", "all kept")]
_LARGEST = ["any workspace: largest gradient error"]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({"row2__ms": "46"}, ["triton, default: time", "triton, default: time / torch.compile's"]),
        ({"row2__peak_mib": "1401"}, ["triton, default: memory"]),
        ({"row3__peak_mib": "1301"}, ["triton, 32 MiB: memory"]),
        (
            {"row4__ms": "37"},
            ["triton, all kept: time", "torch.compile's time / triton, all kept's", *_within(2161, 3411)],
        ),
        (
            {"row4__peak_mib": "3500"},
            ["triton, all kept: memory beyond the gradients / torch.compile's", *_within(2161, 3411, 1310)],
        ),
        (
            {"row4__peak_mib": "4451", "row5__peak_mib": "9999"},
            [*_within(2161, 3411, 1310), "triton, all kept: memory"],
        ),
        ({"row6__ms": "30.9", "row6__peak_mib": "1200.5"}, [*_LIGER, "rivals ahead of ours at their memory"]),
        ({"row6__ms": "41.9", "row6__peak_mib": "1000"}, _LIGER),  # leaner than ours, slower than our leanest
        ({"row6__ms": "81"}, ["Liger-Kernel's time / that of triton, default"]),
        ({"row7__ms": "81"}, ["cut-cross-entropy, exact's time / that of triton, default, no smoothing"]),
        ({"row10__ms": "10.7"}, ["loss only: time"]),
        ({"row10__peak_mib": "4.1"}, ["loss only: memory"]),
        ({"row11__ms": "10.3"}, ["80 % of rows ignored: time / that of all rows"]),
        (
            {"row2__weight_gradient_error": "0.0026"},
            ["triton, default: error of the weight gradient", "default: larger gradient error"],
        ),
        ({"row4__input_gradient_error": "0.0036"}, ["triton, all kept: error of the input gradient", *_LARGEST]),
        ({"row2__skipped": "not there"}, []),
    ],
    ids=lambda names: ", ".join(names) or "none",
)
def test_targets_notice_what_misses(change, lines):
    found = targets.targets(targets.Table(_table(**change)))
    assert [t.line for t in found if not t.met] == lines


def test_targets_command(tmp_path, capsys):
    table, first = tmp_path / "kernel.csv", tmp_path / "first_call.csv"
    write_csv(table, _table())
    times = "Gemma-2-2B,16,5.25\nGemma-2-2B,32,5\nGemma-2-2B,2,12\nGemma-2-2B,1,99\n"  # of one core nothing was asked
    first.write_text(f"shape,cores,first_seconds\n{times}")
    assert targets.main(["--table", str(table), "--first-call", str(first), "--missed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "first call" in lines[0]
    assert lines[0].endswith("NOT MET")
    assert lines[1] == "31 of 32 met; 17 not in the table"


def test_targets_say_of_each_rival_whether_one_of_ours_is_as_lean_and_as_fast(tmp_path, capsys):
    write_csv(tmp_path / "kernel.csv", _table(row5__ms="30.9", row6__ms="90", row6__peak_mib="1000"))
    command = ["--table", str(tmp_path / "kernel.csv"), "--rivals"]
    assert targets.main(command) == 0
    assert targets.main([*command, "--missed"]) == 0
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    exact = "cut-cross-entropy, exact (1200 MiB, 10.00; ours 1200 MiB, 3.10): as lean and as fast"
    missed = [
        "torch.compile (5000 MiB, 3.09; ours 1200 MiB, 3.10): 1.003 of its time",
        "Liger-Kernel (1000 MiB, 9.00; ours 1200 MiB, 3.10): takes more; 0.344 of its time",
    ]
    counted = "ours is as lean and as fast as 1 of 3 settings"
    assert lines == [exact, *missed, counted, *missed, counted]


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
    assert {c.softcap for group in GROUPS for c in group} == {None, 30.0}
    names = {r.name: r for r in rivals(2**20)}
    smoothed, plain = Case(), Case(label_smoothing=0.0)
    assert names["torch, chunked"].refuses(smoothed, torch.device("cpu"))
    assert names["cut-cross-entropy, exact"].refuses(plain, torch.device("cpu"))
    assert names["eager"].refuses(plain, torch.device("cpu")) is None


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


@pytest.fixture
def on_hopper(monkeypatch):
    """Plans are those of an H200, of whatever device the tensors are."""
    for name in ("kernel.fused.call", "kernel.benchmark.own_peak"):
        monkeypatch.setattr(f"{name}.launch_table", lambda *sizes: launch._fitting("hopper", 2, *sizes[2:3] or (None,)))
        monkeypatch.setattr(f"{name}.processors", lambda device: 132)


@pytest.mark.usefixtures("on_hopper")
def test_ours_is_measured_below_the_memory_of_each_rival():
    n, v, d = 8192, 256000, 2304
    tensors = {
        "hidden": torch.empty(n, d, dtype=torch.bfloat16, device="meta"),
        "target": torch.empty(n, device="meta"),
    }
    large = Data(weight=torch.empty(v, d, dtype=torch.bfloat16, device="meta"), **tensors)
    names = {"triton, default": None, "triton, 1 GiB": 2**30, "triton, all kept": 2 * n * (v + 20000) * 2}
    own = {name: own_peak.Plans.of(own_peak.call_of(large, Case(), size)) for name, size in names.items()}
    call = own_peak.call_of(large, Case())
    peaks = {name: (plans.peak_bytes(call) + 2**20) / 2**20 for name, plans in own.items()}
    assert peaks["triton, default"] < 1310 < 2161 < peaks["triton, 1 GiB"] < 3411 < peaks["triton, all kept"] < 4205
    others = {"lean": 1223.5, "as default": 1305.0, "four": 1411.0, "sixteen": 2161.1, "again": 2161.5}
    others |= {"float32": 3411.0, "as all kept": 4210.0, "eager": 12000.0}
    entries = [Entry(Case(), name, columns={"peak_mib": f"{mib}"}) for name, mib in (peaks | others).items()]
    entries.append(Entry(Case(), "refuses", columns={"skipped": "it does"}))
    chosen = [Rival(name, lambda case: len, lambda *_: None, size) for name, size in names.items()]
    group = compare._Group(replace(SHAPE, n=n), large, 1)
    found = list(group.between(Case(), entries, chosen))
    within = [1411.0, 2161.1, 3411.0]
    assert len(found) == len(within), [rival.name for rival in found]
    for rival, mib in zip(found, within, strict=True):
        size = rival.workspace_bytes
        assert rival.name == f"triton, {size >> 20} MiB"
        peak = own_peak.Plans.of(own_peak.call_of(large, Case(), size)).peak_bytes(call)
        assert 0.94 * mib < (peak + own_peak.APART_BYTES) / 2**20 <= mib
    assert list(group.between(Case(), entries[3:], chosen)) == [], "ours is not among them"


def on_meta(n, v, d, dtype=torch.bfloat16):
    tensors = [torch.empty(*size, dtype=dtype, device="meta") for size in ((n, d), (v, d), (n,))]
    return Data(*tensors)


@pytest.mark.usefixtures("on_hopper")
def test_no_larger_workspace_is_within_a_memory():
    data = on_meta(16384, 49152, 576)
    call = own_peak.call_of(data, Case())
    most = data.weight.numel() * 2 + 600 * 2**20

    def peak(size):
        trial = replace(call, workspace_bytes=size * 2**20)
        return own_peak.Plans.of(trial).peak_bytes(trial) + own_peak.APART_BYTES

    fitting = [size for size in range(1, 600) if peak(size) <= most]
    assert own_peak.largest_workspace(call, most)[0] == fitting[-1]
    assert own_peak.largest_workspace(call, data.weight.numel() * 2) is None


@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize(("dtype", "option"), [(torch.float16, {}), (torch.bfloat16, {"z_loss": 1e-4})])
def test_peaks_of_codes_exceed_a_workspace_by_a_128th_of_the_gradient(dtype, option):
    for shape in SHAPES:
        data = on_meta(shape.n, shape.vocab_size, shape.hidden_size, dtype)
        head = Head(data.hidden, data.weight, None, data.target)
        for size in (2**23, 2**27, 2**29):
            call = LossCall(head, Scalars.of(LossOptions(**option)), size)
            plan = call.plan(keep=True, consumed=True, weight_gradient=True)
            peaks = 4 * shape.n * sum(call.references(run) for run in plan.kept)
            room = max(size, 2 * 256 * shape.n) + data.weight.numel() * 2 / 128 + 8 * shape.n
            assert plan.memory * 2 + peaks <= room, shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "backward_rows"), [(512, 512), (176, 512), (512, 176)], ids=["at once", "in chunks", "backward in chunks"]
)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 2.0])
def test_our_peak_is_what_plans_say(share, rows, backward_rows, dtype, monkeypatch):
    """Launches are noted down alone, at a size where what plans do not count is small."""
    monkeypatch.setattr("kernel.fused.available", lambda device, dtype: None)
    monkeypatch.setattr("kernel.fused.schedule.LEAST_DEFAULT_BYTES", 0)
    monkeypatch.setattr("kernel.fused.call.token_chunks", lambda *_, **__: Chunks(rows))
    monkeypatch.setattr("kernel.fused.call.backward_rows", lambda *_, **__: backward_rows)
    n, v, d = 512, 20000, 128
    leaves = [torch.zeros(size, d, dtype=dtype).requires_grad_() for size in (n, v)]
    data, case = Data(*leaves, torch.zeros(n, dtype=torch.int64)), Case()
    size = int(share * n * v * dtype.itemsize)
    schedule.cache_clear()
    with free_launches():
        call = own_peak.call_of(data, case, size)
        plans = own_peak.Plans.of(call)
        with Peak() as measured:
            _record(lambda: measure.step(ours("here", size).make(case), data, case))
    schedule.cache_clear()
    assert len(plans.plans) == (1 if rows == backward_rows == n else 2)
    least = plans.peak_bytes(call)
    assert 0 <= measured.bytes - least < 0.02 * least


def test_what_is_slow_is_timed_in_two_rounds(data, monkeypatch):
    seen = {"slow": 30.0, "fast": 2.0}
    entries = [Entry(Case(), "matmul", run=lambda: None)]
    entries += [Entry(Case(), name, turn=lambda ms=ms: measure.Turn(ms, ms)) for name, ms in seen.items()]
    monkeypatch.setattr(measure, "turn", lambda *_, **__: measure.Turn(1.0, 1.0))
    assert [len(times) for times in compare._Group(SHAPE, data, 5).time(entries)] == [5, 2, 5]


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
