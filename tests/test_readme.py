"""The README's code runs, and its numbers are those of the committed tables."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
import torch

from paper_figures.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def table(header: str) -> list[list[str]]:
    """Body of the Markdown table whose header line starts with ``header``."""
    lines = iter(README.splitlines())
    assert any(line.startswith(header) for line in lines), f"no table {header!r}"
    next(lines)
    body = []
    for line in lines:
        if not line.startswith("|"):
            break
        body.append([cell.strip() for cell in line.strip("|").split("|")])
    return body


def test_the_code_runs():
    head = torch.nn.Linear(8, 32, bias=False)
    names = {"torch": torch, "head": head, "hidden": torch.randn(5, 8), "target": torch.arange(5)}
    assert len(BLOCKS) == 3
    losses = []
    for block in BLOCKS:
        exec(block, names)
        losses.append(names.get("loss"))
    torch.testing.assert_close(losses[2], losses[1])


def test_files_that_are_named_exist():
    named = re.findall(r"`(paper_figures/data/[\w/.]+)`|\]\((?!http)([\w/.]+)\)", README)
    paths = [ROOT / (a or b) for a, b in named]
    assert len(paths) >= 6
    assert [p for p in paths if not p.exists()] == []


def test_the_picture_is_the_redrawn_figure(tmp_path):
    """Pixel by pixel; other versions of matplotlib draw other pixels."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if f"matplotlib=={matplotlib.__version__};" not in pins:
        pytest.skip(f"matplotlib {matplotlib.__version__} is not the pinned one")
    shown = re.findall(r"!\[[^\]]+\]\((paper_figures/data/[\w/]+\.png)\)", README)
    assert shown
    for path in map(Path, shown):
        preset = "quick" if path.parent.name == "quick" else "full"
        assert main(["--only", path.stem, "--preset", preset, "--out", str(tmp_path)]) == 0
        drawn, committed = (matplotlib.image.imread(file) for file in (tmp_path / path.name, ROOT / path))
        redo = f"python -m paper_figures --only {path.stem} --preset {preset}, then copy the PNG to {path}"
        assert drawn.shape == committed.shape, redo
        assert (drawn == committed).all(), redo


def test_the_kernel_table():
    rows = pd.read_csv(ROOT / "paper_figures/data/kernel.csv")
    rows = rows[(rows["mode"] == "loss and gradients") & (rows.label_smoothing == 0.1) & rows.softcap.isna()]
    rows = rows[rows.ignored == 0].set_index(["implementation", "shape"])
    names = ["triton, default", "triton, all kept", "chunked", "eager", "torch.compile", "Liger-Kernel"]
    names.append("Liger-Kernel, float32 sums")
    shapes = ["Gemma-2-2B", "Llama-3-8B", "Qwen2.5-0.5B"]
    body = table("| loss and gradients, smoothing 0.1")
    assert len(body) == len(names)
    for name, (_, *cells, error) in zip(names, body, strict=True):
        found = rows.loc[name].loc[shapes]
        assert cells == [f"{ms:.1f}, {mib:.0f}" for ms, mib in zip(found.ms, found.peak_mib, strict=True)]
        worst = found[["input_gradient_error", "weight_gradient_error"]].max().max()
        assert float(error) == pytest.approx(worst, abs=5.1e-5)


def test_the_cpu_table():
    rows = pd.read_csv(ROOT / "paper_figures/data/chunked.csv")
    rows = rows[(rows.label_smoothing == 0.1) & rows.softcap.isna()]
    body = table("| tokens x vocabulary x hidden")
    assert len(body) == len(rows)
    for cells, row in zip(body, rows.itertuples(), strict=True):
        assert cells[0] == f"{row.tokens} x {row.vocab_size} x {row.hidden_size}"
        assert float(cells[2]) == pytest.approx(row.time_ratio, abs=0.0051)
        assert cells[3:] == [f"{row.chunked_peak_mib} MiB", f"{row.eager_peak_mib} MiB"]
