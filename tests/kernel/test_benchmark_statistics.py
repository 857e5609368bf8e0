"""The command that measures head_statistics, on a problem small enough for Triton's interpreter."""

import csv
import json
import os

import pytest
import torch

if not torch.cuda.is_available():  # before the kernels are first imported
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")


def test_the_command_writes_its_table(tmp_path):
    from kernel.benchmark import head_statistics

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
    assert {"torch", "triton", "python"} < made["versions"].keys()
