"""The simulation of bytes decodes what it codes, and its table ranks the kinds of storage."""

from __future__ import annotations

import csv

import torch
from helpers import refused

from kernel.benchmark import byte_codes


def test_decoded_probabilities_are_exact_at_peaks_and_vanish_12_nats_below():
    z = torch.tensor([[0.0, -1e-6, -3.0, -11.9, -6.9, -40.0, 5.0, 4.0]], dtype=torch.float64)
    lse = torch.logsumexp(z, -1, keepdim=True)
    p, exact = byte_codes.decoded(z, lse, 4, sums=False), torch.softmax(z, -1)
    torch.testing.assert_close(p[0, [0, 6]], exact[0, [0, 6]], rtol=1e-12, atol=0)
    assert ((p / exact - 1).abs()[0, :4] < 2 * 12 / 254).all(), "half a step of the square root"
    assert p[0, 5] == 0 < p[0, 4], "the second block's own peak counts"
    again = byte_codes.decoded(z, lse, 4, sums=True)
    torch.testing.assert_close(again.unflatten(1, (2, 4)).sum(-1), exact.unflatten(1, (2, 4)).sum(-1))


def test_the_table_ranks_kinds_of_storage(tmp_path, capsys):
    output = tmp_path / "codes.csv"
    arguments = ["--tokens", "48", "--vocab-size", "1024", "--hidden-size", "64", "--output", str(output)]
    assert byte_codes.main(arguments) == 0
    rows = {(r["data"], r["storage"]): r for r in csv.DictReader(output.read_text().splitlines())}
    assert len(rows) == 3 * (3 + 8)
    for side in ("input", "weight"):
        anew, code, logits = (
            float(rows["peaked", name][f"{side}_gradient_error"])
            for name in ("none, dz anew", "bytes, peaks of 64 columns", "logits in bfloat16")
        )
        assert 0.001 < anew < 1.5 * code < 1.5 * logits
    rare = [float(rows["peaked", f"bytes, peaks of {n} columns"]["rows_without_target_error"]) for n in (256, 64)]
    assert rare[1] < rare[0]
    capsys.readouterr()
    assert refused(byte_codes, ["--vocab-size", "300"], capsys) == "vocab-size must be a multiple of 256, got 300."
