"""Times by phase: every kernel has one, nothing is lost or counted twice, and what cannot be trusted is said."""

from __future__ import annotations

import ast
import csv
import itertools
import json
from pathlib import Path

import pytest
import torch
from helpers import refused

from kernel import GradientTolerance
from kernel.benchmark import profile, profiled
from kernel.benchmark.phases import IDLE, MARK, OTHER, PHASES, DeviceEvent, calls_of, least, phase_of, phase_times
from kernel.benchmark.problems import SHAPES, Data, Shape, make_data

FUSED = Path(profile.__file__).parents[1] / "fused"
NAMES = ("forward_kernel", "merge_kernel", "recomputed_strip_kernel", "weight_gradient_kernel", "input_gradient_kernel")


def events(calls=2, names=NAMES, ms=10.0, gap=1.0):
    """Two marks around each call, whose kernels take ``ms`` each after a gap of ``gap``; another kernel in between."""
    found, clock = [], 0.0
    for _ in range(calls):
        for name in ("nvjet_hsh", MARK, *names, MARK):
            begin = clock + 1e3 * gap
            clock = begin + 1e3 * (0.0 if name == MARK else ms)
            found.append(DeviceEvent(name, begin, clock))
    return found


def test_every_kernel_has_one_phase():
    defined = set()
    for path in sorted(FUSED.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in node.decorator_list):
                defined.add(node.name)
    launched = set()
    for path in sorted(FUSED.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "run_kernel":
                launched.add(ast.unparse(node.args[0]))
    mapped = [kernel for kernels in PHASES.values() for kernel in kernels]
    assert len(launched) >= 20, "nothing was collected"
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == launched <= defined


@pytest.mark.parametrize(
    ("kernel", "phase"),
    [
        ("forward_kernel", "forward"),
        ("kernel.fused.rows._pack_kernel", "rows and rounding"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int)", "PyTorch's own"),
        ("void (anonymous namespace)::elementwise_kernel_with_index<int, at::native::arange>(int)", "PyTorch's own"),
        ("Memset (Device)", "PyTorch's own"),
        ("forward_kernel_2", OTHER),
        ("nvjet_hsh_128x256_64x4", OTHER),
    ],
)
def test_phase_by_name(kernel, phase):
    assert phase_of(kernel) == phase


def test_phases_and_idle_time_make_the_whole_call():
    found = phase_times(calls_of(events()))
    assert found.pop(IDLE).ms == pytest.approx(6.0)
    assert {phase: (time.ms, time.launches) for phase, time in found.items()} == {
        phase: (pytest.approx(10.0), 1.0)
        for phase in ("forward", "merge", "logits anew", "weight gradient", "input gradient")
    }


def test_what_overlaps_counts_once():
    call = [
        DeviceEvent(MARK, 0.0, 1.0),
        DeviceEvent("forward_kernel", 1.0, 101.0),
        DeviceEvent("merge_kernel", 91.0, 121.0),
        DeviceEvent("_pack_kernel", 95.0, 100.0),
        DeviceEvent(MARK, 131.0, 132.0),
    ]
    found = phase_times(calls_of(reversed(call)))
    assert sum(time.ms for time in found.values()) == pytest.approx(0.130)
    assert found["merge"].ms == pytest.approx(0.020)
    assert found["rows and rounding"].ms == 0
    assert found[IDLE].ms == pytest.approx(0.010)


@pytest.mark.parametrize("marks", [0, 1, 3])
def test_calls_without_marks_are_refused(marks):
    said = f"each call must lie between two kernels named spin_kernel, got {marks} of them in {marks} events"
    with pytest.raises(ValueError, match=said):
        calls_of([DeviceEvent(MARK, float(i), float(i)) for i in range(marks)])


def test_the_least_of_the_default_at_gemma():
    """Two bytes of each entry: the gradient has room for D / N of the columns, the workspace for W / (2 N V)."""
    found = least(8192, 256000, 2304, 2**27, matmul_ms=14.0, copy_ms=0.6)
    assert found.chunks == 1
    assert found.moved_ms == 0
    assert found.ms == pytest.approx(14.0 * (1 - 2304 / 8192 - 2**27 / (2 * 8192 * 256000)))
    assert least(8192, 256000, 2304, 2**33, matmul_ms=14.0, copy_ms=0.6).ms == 0


@pytest.mark.parametrize("workspace_mib", [0, 128, 600, 914, 1500, 3000])
@pytest.mark.parametrize("sizes", [(8192, 256000, 2304), (16384, 151936, 896), (12288, 262144, 640)])
def test_the_least_is_that_of_the_best_split(sizes, workspace_mib):
    """Against shares of a grid that fit, of one chunk of tokens or of several."""
    tokens, vocab_size, hidden_size = sizes
    matmul_ms, copy_ms, best = 10.0, 0.5, float("inf")
    decode_ms = copy_ms * 3 * tokens * vocab_size / (4 * vocab_size * hidden_size)
    steps = [i / 40 for i in range(41)]
    for chunks in range(1, 20):
        total = (chunks - 1) * copy_ms
        for index in range(chunks):
            room = workspace_mib * 2**20 + (2 * vocab_size * hidden_size if index == 0 else 0)
            room /= tokens / chunks * vocab_size
            fits = [(x, y) for x, y in itertools.product(steps, steps) if x + y <= 1 and 2 * x + y <= room]
            total += min((1 - x - y) * matmul_ms + y * decode_ms for x, y in fits) / chunks
        best = min(best, total)
    problem = tokens, vocab_size, hidden_size, workspace_mib * 2**20
    found = least(*problem, matmul_ms=matmul_ms, copy_ms=copy_ms, in_bytes=True)
    assert best - 0.3 <= found.ms <= best + 1e-9
    alone = least(*problem, matmul_ms=matmul_ms, copy_ms=copy_ms)
    assert found.ms <= alone.ms


@pytest.mark.parametrize(
    ("name", "workspace_mib", "kept", "in_bytes", "cut"),
    [
        ("Gemma-2-2B", 128, (0.5, 0.5625), 0.5, False),  # 2 D / N is 0.5625
        ("Gemma-2-2B", 914, (0.8, 1.0), 0.8, False),
        ("Gemma-2-2B", 8192, (1.0, 1.0), 0, False),
        ("Qwen2.5-0.5B", 1024, (0.8, 1.0), 0, True),
    ],
)
def test_shares_of_kept_columns(monkeypatch, name, workspace_mib, kept, in_bytes, cut):
    """Of the plans of an H200, which need no memory."""
    pytest.importorskip("triton")
    from kernel.fused import call, launch

    monkeypatch.setattr(call, "launch_table", lambda *_: launch._TABLES["hopper", 2])
    monkeypatch.setattr(call, "processors", lambda device: 132)
    shape = next(shape for shape in SHAPES if shape.name == name)

    def meta(*size, dtype=torch.bfloat16):
        return torch.empty(size, dtype=dtype, device="meta", requires_grad=dtype.is_floating_point)

    head = meta(shape.n, shape.hidden_size), meta(shape.vocab_size, shape.hidden_size)
    data = Data(head[0], head[1], meta(shape.n, dtype=torch.int64))
    found = profiled.Profiled("", workspace_mib * 2**20, data).shares()
    assert kept[0] <= found["kept"] <= kept[1]
    assert found["in_bytes"] >= in_bytes
    assert found["in_bytes"] <= found["kept"]
    assert found["logits anew"] == pytest.approx(1 - found["kept"])
    assert (found["chunks"] > 1) == cut


def test_shares_of_a_sparse_loss():
    told = GradientTolerance(0.003)
    told.input_active, told.weight_active = 0.1, 0.2
    data = make_data(Shape("small", 16, 32, 16), torch.float32, torch.device("cpu"))
    found = profiled.Profiled("sparse, default", 0, data, told).shares()
    computed = [found[phase] for phase in ("forward", "logits anew", "weight gradient", "input gradient")]
    assert computed == [1.0, 0.1, 0.2, 0.1]


def run(tmp_path, monkeypatch, found, *options):
    """The command on a CPU, with the events of a GPU that took as long as the call did."""
    monkeypatch.setattr(profile, "_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(profiled, "record", lambda run, before, calls: found() if callable(found) else found)
    times = [[10.0]] * 5 + [[0.5], [56.0]]
    monkeypatch.setattr(profiled, "_rounds", lambda runs, before, rounds, device: times)
    arguments = ["--scale", "256", "--calls", "1", "--output", str(tmp_path / "profile.csv")]
    status = profile.main([*arguments, "--shapes", "Gemma-2-2B", *options])
    return status, list(csv.DictReader((tmp_path / "profile.csv").read_text().splitlines()))


def test_table(tmp_path, monkeypatch, capsys):
    pytest.importorskip("triton")
    status, rows = run(tmp_path, monkeypatch, events(), "--budgets", "default", "0.25 MiB")
    assert status == 0, capsys.readouterr().err
    assert [row["budget"] for row in rows] == ["default"] * 6 + ["0.25 MiB"] * 6
    for row in rows:
        columns, ms = row["columns"], float(row["ms"])
        done = float(columns) * float(row["product_ms"]) if row["product_ms"] else 0.0
        assert float(row["excess_ms"]) == pytest.approx(ms - done, abs=1e-3)
        assert not row["rate"] or float(row["rate"]) == pytest.approx(done / ms, abs=1e-3)
        assert (row["call_ms"], row["profiled_ms"]) == ("56.000", "56.000")
        assert row["tries"] == "1"
    anew = {row["budget"]: row for row in rows if row["phase"] == "logits anew"}
    assert float(anew["default"]["columns"]) == pytest.approx(1 - float(anew["default"]["kept"]), abs=1e-4)
    config = json.loads((tmp_path / "profile.json").read_text())["config"]
    assert config["shapes"] == ["Gemma-2-2B"]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (events(ms=12.0), "Gemma-2-2B, default: 66.00 ms in the profile, 56.00 without it"),
        (
            events(names=(*NAMES[:-1], "cutlass_gemm")),
            "Gemma-2-2B, default: 10.00 of 56.00 ms in kernels of no phase: cutlass_gemm",
        ),
    ],
)
def test_what_is_not_to_be_trusted_is_said(tmp_path, monkeypatch, capsys, found, said):
    pytest.importorskip("triton")
    status, rows = run(tmp_path, monkeypatch, found, "--budgets", "default")
    assert status == 1
    assert capsys.readouterr().err == f"not to be trusted: {said}\n"
    assert len(rows) == 6, "the table is there all the same"


@pytest.mark.parametrize(("ms", "kept", "tries"), [((12.0, 10.1, 10.0), 10.1, 2), ((8.0, 11.0, 12.0), 11.0, 3)])
def test_a_case_is_measured_again_until_both_times_agree(tmp_path, monkeypatch, ms, kept, tries):
    """At most three times, and the nearest counts."""
    pytest.importorskip("triton")
    sessions = iter(ms)
    status, rows = run(tmp_path, monkeypatch, lambda: events(ms=next(sessions)), "--budgets", "default")
    assert status == (tries == 3)
    assert {(row["profiled_ms"], row["tries"]) for row in rows} == {(f"{5 * kept + 6:.3f}", str(tries))}


def test_the_profile_lies_between_rounds_without_it(monkeypatch):
    said = []
    monkeypatch.setattr(profiled, "record", lambda run, before, calls: said.append("profile") or events(ms=10))
    monkeypatch.setattr(
        profiled.measure, "turn", lambda run, device, before: said.append(run()) or profiled.measure.Turn(56.0, 0)
    )
    runs = [lambda: "product", lambda: "loss"]
    profiled._agreeing(runs, lambda: None, 5, torch.device("cpu"))
    assert [sorted(said[:4]), said[4], sorted(said[5:])] == [
        ["loss", "loss", "product", "product"],
        "profile",
        ["loss", "loss", "product", "product"],
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_gpu_nothing_is_profiled(tmp_path, capsys):
    assert profile.main(["--output", str(tmp_path / "profile.csv")]) == 2
    assert capsys.readouterr().err == "error: kernels are profiled on a GPU, and torch finds none.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shapes"], "give at least one of --shapes, or --states."),
        (["--budgets", "3GB"], "must be default, all kept or like 914 MiB or 3 GiB, got '3GB'"),
    ],
)
def test_options_that_are_refused(tmp_path, monkeypatch, capsys, options, said):
    monkeypatch.setattr(profile, "_device", lambda: torch.device("cpu"))
    assert said in refused(profile, [*options, "--output", tmp_path / "profile.csv"], capsys)
