"""The benchmark of a head in several processes, run small on a CPU: its table and its differences."""

import csv
import json
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and sys.platform.startswith("linux")), reason="needs gloo"
)


def test_two_processes_write_one_table(tmp_path):
    table = tmp_path / "parallel.csv"
    command = [sys.executable, "-W", "ignore", "-m", "kernel.benchmark.parallel", "--device", "cpu", "--scale", "1024"]
    command += ["--rounds", "1", "--processes", "2", "--output", str(table)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["implementation"].partition(",")[0] for row in rows] == [
        *("one process", "process_group", "process_group", "loss_parallel"),
        *("one process", "process_group", "process_group"),
    ] * 2
    for row in rows:
        assert sum(map(int, row["rows"].split())) == int(row["vocab_size"])
        assert min(float(row[f"{name}ms"]) for name in ("", "host_", "forward_", "backward_")) > 0
        together = row["implementation"].startswith("process_group")
        assert (float(row["sum_ms"] or 0) > 0) == (float(row["wait_ms"]) > 0) == together
        assert row["repeats_bitwise"] == "True"
        for name in ("loss", "input_gradient", "weight_gradient"):
            assert float(row[f"{name}_difference"] or 0) < 1e-5
    assert len({row["rows"] for row in rows if row["implementation"].startswith("process_group")}) == 4
    assert json.loads(table.with_suffix(".json").read_text())["config"]["processes"] == 2


def test_a_trial_on_a_cpu_is_asked_for(capsys, monkeypatch):
    from kernel.benchmark import parallel

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parallel.main([]) == 2
    assert "this measures a GPU, and torch finds none" in capsys.readouterr().err


def test_one_gpu_for_all_processes_is_refused(capsys, monkeypatch):
    from kernel.benchmark import parallel

    monkeypatch.setattr(parallel, "resolve_device", lambda given: torch.device(given.device))
    assert parallel.main(["--device", "cuda:1"]) == 2
    assert "got 'cuda:1': each process takes a GPU of its own." in capsys.readouterr().err
