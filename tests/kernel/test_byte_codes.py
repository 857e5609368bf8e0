"""The study of bytes decodes what it codes, by the kernels' formula, and its table ranks the kinds of storage."""

from __future__ import annotations

import csv
import math

import torch
from helpers import refused

from kernel.benchmark import byte_codes
from kernel.fused.plan import PEAK_COLUMNS


def test_the_study_is_of_the_code_that_the_kernels_use():
    assert byte_codes.by_root.__defaults__ == (PEAK_COLUMNS, byte_codes.ROOT)
    z = torch.tensor([[0.0, -1e-6, -3.0, -11.9, -6.9, -40.0, 5.0, 4.0]], dtype=torch.float64)
    lse = torch.logsumexp(z, -1, keepdim=True)
    p, exact = byte_codes.by_root(z, lse, 4), torch.softmax(z, -1)
    # The second block's is the tile's largest; the first one's in quarters of a bit below it: 28 of 28.9.
    peaks = torch.tensor([[5 - 28 / 4 * math.log(2)] * 4 + [5.0] * 4])
    root = lambda q: (q / torch.exp(peaks.double() - lse)) ** (1 / byte_codes.ROOT)  # noqa: E731
    assert ((root(p) - root(exact)).abs() <= 0.5 / 255 + 1e-6).all(), "half a step of the root"
    assert p[0, 5] == 0 < p[0, 3], "(exp(-45 / 4) is less than half a step"
    by_logarithm = byte_codes.by_logarithm(z, lse, 4)
    torch.testing.assert_close(by_logarithm[0, [0, 6]], exact[0, [0, 6]], rtol=1e-12, atol=0)
    assert ((by_logarithm / exact - 1).abs()[0, :4] < 2 * 12 / 254).all()


def test_the_table_ranks_kinds_of_storage(tmp_path, capsys):
    output = tmp_path / "codes.csv"
    arguments = ["--tokens", "48", "--vocab-size", "1024", "--hidden-size", "64", "--output", str(output)]
    assert byte_codes.main(arguments) == 0
    rows = {(r["data"], r["storage"]): r for r in csv.DictReader(output.read_text().splitlines())}
    assert len(rows) == 7 * (4 + 12)
    used = "bytes, root 4, peaks of 64 columns"
    for side in ("input", "weight"):
        anew, code, logits = (
            float(rows["peaked", name][f"{side}_gradient_error"])
            for name in ("none, dz anew", used, "logits in bfloat16")
        )
        assert 0.001 < anew < 1.5 * code < 1.5 * logits
    others = ("bytes, root 4, peaks of 256 columns", "bytes, root 8, peaks of 64 columns")
    rare = [float(rows["peaked", name]["rows_without_target_error"]) for name in (used, *others)]
    assert rare[0] == min(rare)
    assert rows["peaked", "bytes"]["rows_without_target_error"] == f"{rare[0]:.5f}", "no 64 logits are close there"
    optimum = [float(rows["optimum, 0.01", name]["weight_gradient_error"]) for name in ("none, dz anew", "bytes", used)]
    assert optimum[1] < 1.5 * optimum[0] < 0.004 < 0.03 < optimum[2], "why steps cover what lies between logits"
    capsys.readouterr()
    assert refused(byte_codes, ["--vocab-size", "300"], capsys) == "vocab-size must be a multiple of 256, got 300."
