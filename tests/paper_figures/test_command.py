"""``python -m paper_figures``: what it draws, from which tables, what it says where one is missing, and simulation."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.lab.records import RowStore
from analysis.lab.tables import read_table
from paper_figures import FIGURES, tables
from paper_figures.__main__ import main
from paper_figures.simulation import SIMULATED

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty folder of committed tables."""
    monkeypatch.setattr(tables, "DATA", tmp_path / "data")
    (tmp_path / "data/quick").mkdir(parents=True)
    return tmp_path / "data"


def commit(data, name, *, quick):
    """Copy a committed quick table with its sidecar, as itself or as a full one."""
    for ending in ("csv", "json"):
        shutil.copy(ROOT / f"paper_figures/data/quick/{name}.{ending}", data / ("quick" if quick else ""))


def test_list_names_every_figure_and_says_what_it_shows(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(FIGURES)
    assert all(len(line) > 40 for line in lines)


def test_it_draws_the_committed_tables_byte_for_byte_again(tmp_path, capsys):
    command = ["--preset", "quick", "--only", "samples", "--only", "kernel", "--only", "samples"]
    for folder in ("one", "two"):
        assert main([*command, "--out", str(tmp_path / folder)]) == 0
    printed = capsys.readouterr().out
    names = [f"{name}.{ending}" for name in ("kernel", "samples") for ending in ("csv", "pdf", "png")]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert len(content) > 1000
        assert printed.count(f"wrote {tmp_path / 'one' / name}") == 1


def test_without_a_preset_full_tables_go_first(data, tmp_path, capsys, monkeypatch):
    from paper_figures import samples

    presets, make = [], samples.make
    monkeypatch.setattr(samples, "make", lambda rows, *, preset: presets.append(preset) or make(rows, preset=preset))
    commit(data, "S4", quick=True)
    command = ["--only", "samples", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "samples: no full table S4 (made by: python -m analysis.study run S4 --preset full" in printed
    assert "drawn from the quick one" in printed
    commit(data, "S4", quick=False)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"samples, preset full, from {data / 'S4.csv'}" in printed
    assert "quick" not in printed
    assert presets == ["quick", "full"]


def test_a_missing_table_names_the_command_that_makes_it(data, tmp_path, capsys):
    commit(data, "S4", quick=True)
    command = ["--preset", "quick", "--only", "samples", "--only", "tuning", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "samples.pdf" in out  # the others are drawn
    missing = data / "quick/S7.csv"
    assert "error: tuning was not drawn: there is no table" in err
    assert f"or {missing}; make it with: python -m analysis.study run S7 --preset quick\n" in err


@pytest.mark.parametrize(
    ("table", "preset", "command"),
    [
        ("S3", "full", "python -m analysis.study run S3 --preset full --device cuda"),
        (
            "verdicts",
            "quick",
            "python -m analysis.study verdicts --preset quick --file paper_figures/data/quick/verdicts.csv",
        ),
        ("kernel", "quick", "python -m kernel.benchmark --output paper_figures/data/kernel.csv (needs a GPU)"),
        ("caps", "full", "python -m analysis.caps_table paper_figures/data/caps.csv"),
        ("transition", "full", "python -m analysis.transition_table paper_figures/data/transition.csv"),
    ],
)
def test_the_command_that_makes_a_table(table, preset, command):
    assert tables.needed_command(table, preset) == command


def test_every_command_that_is_named_exists():
    named = {tables.needed_command(table, "quick") for module in FIGURES.values() for table in modules(module)}
    assert len(named) > 8
    for command in sorted(named):
        module = command.split()[2].replace(".", "/")
        assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists(), command


def modules(name):
    from importlib import import_module

    module = import_module(name)
    return (*module.TABLES, *module.OPTIONAL)


def test_a_run_left_in_the_output_folder_goes_before_the_committed_table(data, tmp_path):
    commit(data, "S4", quick=True)
    out = tmp_path / "out"
    assert tables.available("S4", "quick", out) == data / "quick/S4.csv"
    out.mkdir()
    for name in ("S4", "verdicts", "kernel"):
        (out / f"{name}.csv").touch()
    assert tables.available("S4", "quick", out) == out / "S4.csv"
    # Figures of these names write their drawn numbers there.
    assert tables.available("verdicts", "quick", out) is None
    assert tables.available("kernel", "quick", out) is None


def test_a_packed_table_is_read_like_a_plain_one(data, tmp_path):
    commit(data, "S4", quick=True)
    plain = tables.read("S4", "quick", tmp_path)
    path = data / "quick/S4.csv"
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert tables.available("S4", "quick", tmp_path) == path.with_suffix(".csv.gz")
    pd.testing.assert_frame_equal(tables.read("S4", "quick", tmp_path), plain)


class TestSimulate:
    @pytest.fixture
    def few(self, monkeypatch):
        """Four heads of S4 that train within a second, and S4 among what is simulated."""
        from analysis.study import s4_samples as samples
        from paper_figures import simulation

        few = [c for c in samples.configs("quick") if c.hidden_size == 4 and c.norm == "budget" and c.teacher.seed < 2]
        few = [c for c in few if c.teacher.samples_per_context == 8]
        monkeypatch.setattr(samples, "EXPERIMENT", replace(samples.EXPERIMENT, configs=lambda preset: few))
        monkeypatch.setattr(simulation, "SIMULATED", ("S4",))
        return few

    def command(self, out):
        return ["--preset", "quick", "--simulate", "--workers", "1", "--only", "samples", "--out", str(out)]

    def test_out_of_time_the_committed_table_is_drawn_and_the_rows_are_kept(self, few, tmp_path, capsys):
        out = tmp_path / "out"
        assert main([*self.command(out), "--max-minutes", "1e-9"]) == 0
        printed = capsys.readouterr().out
        assert "S4: time is up; the committed quick table is drawn, run again to go on" in printed
        assert not (out / "S4.csv").exists()
        assert len(pd.read_csv(out / "samples.csv")) > 1

    def test_it_trains_and_draws_and_goes_on_after_an_interruption(self, few, tmp_path, capsys, monkeypatch):
        """Control-C after two rows: they are kept, and no table is written; a third call has nothing left to do."""
        out, write = tmp_path / "a b", RowStore.write

        def interrupted(store, *row):
            if len(list((out / "rows/S4").glob("*.json"))) == 2:
                raise KeyboardInterrupt
            write(store, *row)

        with monkeypatch.context() as patch:
            patch.setattr(RowStore, "write", interrupted)
            assert main(self.command(out)) == 130
        assert capsys.readouterr().err.endswith(f"interrupted: 2 of {len(few)} rows are kept; run again to go on\n")
        assert len(list((out / "rows/S4").glob("*.json"))) == 2
        assert not (out / "S4.csv").exists()
        drawn = []
        for computed in (len(few) - 2, 0):
            capsys.readouterr()
            assert main(self.command(out)) == 0
            assert f"{computed} computed now, {len(few)} of {len(few)} there" in capsys.readouterr().out
            drawn.append({path.name: path.read_bytes() for path in out.glob("samples.*")})
        assert set(drawn[0]) == {"samples.csv", "samples.pdf", "samples.png"}
        assert drawn[0] == drawn[1]
        assert len(read_table(out / "S4.csv")) == len(few)
        assert pd.read_csv(out / "samples.csv")["seeds"].tolist() == [2]


def test_what_is_simulated_is_named_in_the_help_and_the_others_are_said_to_be_committed(tmp_path, capsys):
    assert main(["--simulate", "--only", "kernel", "--out", str(tmp_path)]) == 0
    assert "not simulated here" not in capsys.readouterr().out
    assert main(["--simulate", "--only", "samples", "--out", str(tmp_path)]) == 0
    assert "S4: not simulated here, drawn from the committed quick tables" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert f"{', '.join(SIMULATED[:-1])} and {SIMULATED[-1]}" in text
    assert "python -m paper_figures --preset quick --simulate" in text


@pytest.mark.parametrize(
    "arguments", [["--only", "nothing"], ["--preset", "tiny"], ["--workers", "0"], ["--max-minutes", "-1"]]
)
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error" in capsys.readouterr().err


def test_importing_the_package_draws_and_imports_nothing_heavy():
    code = "import sys, paper_figures; print(sorted(set(sys.modules) & {'torch', 'pandas', 'matplotlib'}))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
