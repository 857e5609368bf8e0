"""The commands of the benchmark run anywhere at a reduced scale, and their tables say what was measured."""

from __future__ import annotations

import csv
import json
import os

import torch
from helpers import refused

import kernel.benchmark.__main__ as comparison
from kernel.benchmark import first_call, head_statistics, measure
from kernel.benchmark.__main__ import COLUMNS, main
from kernel.benchmark.compare import GROUPS


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
    assert {row["ahead_ms"] for row in rows} == {"0"}, "nothing is queued on a CPU"
    assert {row["commit"] for row in rows} == {sidecar["commit"] or ""}
    assert sidecar["wall_seconds"] > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kernel.csv", "kernel.json", "kernel_samples.csv"]


def test_rows_of_another_clock_are_doubted():
    """By the product right ahead of each call; calls without one, of an older process, tell nothing."""
    row = dict.fromkeys(COLUMNS, "1") | {"skipped": ""}
    found = [row | {"implementation": name, "product_ms": ms} for name, ms in (("a", "6.6"), ("b", "6.7"))]
    assert not list(comparison._doubts(found))
    found += [row | {"implementation": "c", "product_ms": "5.6"}, row | {"product_ms": ""}]
    found += [{name: value for name, value in row.items() if name != "product_ms"}]
    (doubt,) = comparison._doubts(found)
    assert doubt.endswith("at another clock: the product ahead took 5.600 ms, of all calls 6.600")
    assert not list(comparison._doubts(found[-2:]))


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
    sidecar = tmp_path / "kernel.partial.json"
    made = sidecar.read_text()
    sidecar.write_text(json.dumps(json.loads(made) | {"device": "another"}))
    assert "the same device, got" in refused(comparison, [*command, "--resume"], capsys)
    sidecar.write_text(made)
    assert main([*command, "--resume"]) == 0
    assert len(measured) == len(GROUPS), "what was there is not measured again"
    rows = list(csv.DictReader(output.read_text().splitlines()))
    cases = [
        (r["label_smoothing"], r["softcap"], r["ignored"], r["mode"]) for r in rows if r["implementation"] != "matmul"
    ]
    assert len(dict.fromkeys(cases)) == sum(map(len, GROUPS))
    assert "--resume" not in json.loads((tmp_path / "kernel.json").read_text())["command"]
    assert not list(tmp_path.glob("*.partial*"))


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
