"""What the page of the kernel says of sustained power, from small tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers import write_csv

from kernel.benchmark.power import COLUMNS, FLUSHED, PRODUCTS

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docs"))
pytest.importorskip("pandas")
import kernel_power
import pandas as pd
from table_text import DATA, ROOT

LARGE, SMALL = "V 248320, D 2048", "Gemma-3-270M"


def rows(shape, at_limit):
    """Three products of 10, 20 and 30 ms at 700, 600 and 700 W, and losses."""
    cases = {name: (10.0 * i, 600 if i == 2 else 700) for i, name in enumerate(PRODUCTS, 1)}
    cases |= {name: (9.0 * i, 600) for i, name in enumerate(FLUSHED, 1)}
    cases |= {"input @ zeros.T": (8.0, 500), "copy of the head": (0.5, 560)}
    cases |= {"triton, default": (70.0, 710), "triton, all kept": (62.5, 715), "eager": (80.0, 650)}
    for name, (ms, watts) in cases.items():
        share = at_limit if name == "triton, all kept" else 1.0
        row = {"shape": shape, "case": name, "ms": ms, "ms_alone": 0.8 * ms, "watts": watts, "mhz": 1400}
        yield row | {"joules": watts * ms / 1e3, "at_limit": share, "doubt": "", "skipped": ""}
    yield {"shape": shape, "case": "Liger-Kernel CuTe", "skipped": "not installed: cutlass"}


@pytest.fixture
def tables(tmp_path):
    def write(*given):
        write_csv(tmp_path / "kernel_power.csv", given, COLUMNS)
        config = {"seconds": 0.7, "warm": 0.3, "limit_watts": 700.0, "most_mhz": 1980}
        versions = {"torch": "2", "triton": "3", "liger_kernel": None}
        about = {"device": "GPU", "commit": "0123456789abcdef", "versions": versions, "config": config}
        (tmp_path / "kernel_power.json").write_text(json.dumps(about))
        return kernel_power.kernel_power(tmp_path)

    return write


def test_without_a_table_nothing_is_shown(tmp_path):
    assert kernel_power.kernel_power(tmp_path) == ""


def test_products_are_added_and_losses_are_in_products(tables):
    lines = tables(*rows(LARGE, 0.95), *rows(SMALL, 0.25)).splitlines()
    shown = [line for line in lines if line.startswith(f"| {LARGE} |")]
    power = (700 * 10 + 600 * 20 + 700 * 30) / 60
    assert shown == [
        f"| {LARGE} | three products by the library | 60.00 | 6.00 | {power:.0f} | 1400 | 40.0 | 100% |",
        f"| {LARGE} | `triton, default` | 70.00 | 7.00 | 710 | 1400 | 49.7 | 100% |",
        f"| {LARGE} | `triton, all kept` | 62.50 | 6.25 | 715 | 1400 | 44.7 | 95% |",
        f"| {LARGE} | `eager` | 80.00 | 8.00 | 650 | 1400 | 52.0 | 100% |",
    ], "what was skipped has no line"


def test_where_power_is_the_limit(tables):
    text = " ".join(tables(*rows(LARGE, 0.95), *rows(SMALL, 0.25)).split())
    assert f"at the limit of 700 W in at least 90% of the samples at {LARGE}: there a call's time is about" in text
    assert f"At {SMALL} ours is there in 25% to 100% of the samples." in text
    assert "`input @ weight.T` takes 8.00 ms after a pause and 10.00 in its loop, at 700 W and 1400 MHz; of a" in text
    assert "The two products of dz take 50.00 ms, and 27.00 if its entries below 2^-20 are zeros." in text
    assert "a head of zeros 8.00 at 500 W and 1400 MHz; a copy of the head takes 0.50 ms at 560 W" in text
    assert "(one GPU with a power limit of 700 W and clocks up to 1980 MHz, torch 2, Triton 3, commit" in text
    assert "trusted" not in text


def test_doubts_are_named(tables):
    found = [row | {"doubt": "only 7 samples of its power" if row["case"] == "eager" else ""} for row in rows(SMALL, 1)]
    assert tables(*found).endswith(f"Not to be trusted: {SMALL}, eager (only 7 samples of its power).")


def test_what_the_page_says_of_the_limit():
    """A quarter off the clock, an eighth less time without small entries, and one loss that is not at the limit."""
    page = (ROOT / "docs" / "kernel_notes.md").read_text(encoding="utf-8")
    about = json.loads((DATA / "kernel_power.json").read_text(encoding="utf-8"))["config"]
    rows = pd.read_csv(DATA / "kernel_power.csv").set_index(["shape", "case"])
    losses = rows.drop(["copy of the head", "input @ zeros.T", *FLUSHED], level="case")
    free = losses[losses["at_limit"] < 0.9]
    assert [case for _, case in free.index] == ["Liger-Kernel CuTe, bfloat16 sums, chunk 4"]
    assert "but for one rival at one head" in " ".join(page.split())
    ours, rival = (
        rows.loc[(LARGE, name), "ms"] for name in ("triton, 1 GiB", "Liger-Kernel CuTe, bfloat16 sums, chunk 16")
    )
    assert ours < rival, "at vocabulary 248320 ours is ahead in loops"
    limited = losses.drop(free.index)
    assert (1 - limited["mhz"] / about["most_mhz"]).median() == pytest.approx(0.25, abs=0.02)
    for _, found in rows["ms"].unstack("case").iterrows():
        assert found[list(FLUSHED)].sum() / found[list(PRODUCTS[1:])].sum() == pytest.approx(7 / 8, abs=0.01)
        assert found["input @ zeros.T"] < 0.9 * found[PRODUCTS[0]]


def test_how_long_after_a_pause_a_product_takes_less(tables, tmp_path):
    ranges = [(0, 20, 0.85), (20, 40, 0.9), (40, 80, 1.0)]
    found = [{"shape": LARGE, "from_ms": low, "to_ms": high, "of_last": share} for low, high, share in ranges]
    write_csv(tmp_path / "kernel_settle.csv", found)
    config = {"pause_ms": 200, "ahead_ms": 160.0}
    (tmp_path / "kernel_settle.json").write_text(json.dumps({"commit": "0123456789abcdef", "config": config}))
    text = " ".join(tables(*rows(LARGE, 1.0)).split())
    assert "After a pause of 200 ms `input @ weight.T` runs again and again." in text
    assert f"at {LARGE} 0.850 (0 to 20 ms), 0.900 (20 to 40 ms) (`kernel_settle.csv`, commit `0123456789ab`" in text
    assert text.endswith("behind 160 ms of products.")
