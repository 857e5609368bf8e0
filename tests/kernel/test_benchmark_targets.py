"""What was asked of the kernel is judged by the table alone, and each rival by what ours takes within its memory."""

from __future__ import annotations

import pytest
from helpers import write_csv

from kernel.benchmark import targets


def _table(**changed: str) -> list[dict[str, str]]:
    """Rows of Gemma-2-2B that meet everything, but for what is changed: IMPLEMENTATION__COLUMN."""
    names = {
        "matmul": "10", "three products": "30", targets.DEFAULT: "41", targets.SMALL: "42", targets.KEPT: "31",
        "torch.compile": "40", "Liger-Kernel": "100", "cut-cross-entropy, exact": "100",
    }  # fmt: skip
    common = {"shape": "Gemma-2-2B", "label_smoothing": "0.1", "softcap": "", "ignored": "0.0", "skipped": ""}
    common |= {"mode": "loss and gradients", "matmul_ms": "10", "gradient_mib": "1000"}
    common |= {f"{side}_gradient_error": "0.002" for side in ("input", "weight")}
    peaks = {targets.KEPT: "1199.7", targets.DEFAULT: "1199.8", targets.SMALL: "1199.9"}  # three plans
    rows = [{**common, "implementation": n, "ms": ms, "peak_mib": peaks.get(n, "1200")} for n, ms in names.items()]
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


def test_one_plan_that_was_measured_several_times_counts_as_the_mean():
    """Not as the fastest of its repeats, while a rival has one."""
    table = targets.Table(_table(row2__ms="30", row2__peak_mib="1300", row4__ms="32", row4__peak_mib="1300"))
    assert table.ours("Gemma-2-2B") == [(1199.9, 4.2), (1300.0, pytest.approx(3.1))]
    assert table.within("Gemma-2-2B", 1310) == pytest.approx(3.1)
