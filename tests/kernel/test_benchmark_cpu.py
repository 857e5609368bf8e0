"""Memory of the chunked loss, and the command that writes its table."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from kernel.benchmark import cpu as benchmark_cpu

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")


@linux
@pytest.mark.parametrize(("label_smoothing", "softcap"), benchmark_cpu.CASES)
def test_chunked_never_holds_the_logits(label_smoothing, softcap):
    n, v, d = 2048, 65536, 16
    assert benchmark_cpu.measure_peak_bytes("chunked", n, v, d, label_smoothing, softcap) < 4 * n * v / 8


@linux
def test_the_measurement_sees_the_logits_of_eager_code():
    """Else the test above could pass on a broken measurement."""
    n, v, d = 512, 65536, 16
    assert benchmark_cpu.measure_peak_bytes("eager", n, v, d, 0.0, None) > 4 * n * v


@linux
def test_command_writes_a_table_with_its_sidecar(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_cpu, "SHAPES", ((64, 128, 8),))
    assert benchmark_cpu.main(["--out", str(tmp_path / "chunked.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "chunked.csv").read_text().splitlines()))
    assert [(r["label_smoothing"], r["softcap"]) for r in rows] == [("0.0", ""), ("0.1", ""), ("0.1", "30.0")]
    assert all(float(r["time_ratio"]) > 0 for r in rows)
    sidecar = json.loads((tmp_path / "chunked.json").read_text())
    assert list(sidecar) == ["command", "config", "seeds", "versions", "device", "commit", "wall_seconds"]
    assert sidecar["command"] == "python -m kernel.benchmark.cpu"
    assert sidecar["config"]["dtype"] == "float32"
