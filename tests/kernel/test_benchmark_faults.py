"""Faults of the benchmarks' commands: each is one line and a status, and no table is touched that was not named."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from helpers import file_size_limit, refused, write_csv
from torch._subclasses.fake_tensor import FakeTensorMode

from kernel.benchmark import __main__ as comparison
from kernel.benchmark import command, cpu, first_call, head_statistics, measure, scale, tables, targets, training_step

SCHEMA = ["command", "config", "seeds", "versions", "device", "commit", "wall_seconds"]
ON_A_GPU = [comparison, first_call, head_statistics, scale, training_step]
MEASURED = {
    comparison: "compare",
    first_call: "subprocess",
    head_statistics: "_measure",
    scale: "_rows",
    training_step: "_measure",
}
ids = [module.__name__.rpartition(".")[2] for module in ON_A_GPU]
COMMITTED = Path(command.__file__).resolve().parents[2] / "paper_figures" / "data"


@pytest.fixture
def nothing_is_measured(monkeypatch):
    for module, name in MEASURED.items():
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("something is measured"))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize("module", ON_A_GPU, ids=ids)
class TestRefused:
    def test_without_a_gpu_it_is_refused_unless_device_and_output_are_given(self, module, no_gpu, tmp_path, capsys):
        before = {path: path.read_bytes() for path in COMMITTED.glob("*.json")}
        for given in ([], ["--output", tmp_path / "t.csv"]):
            assert refused(module, given, capsys) == (
                "this measures a GPU, and torch finds none: for a trial on the CPU give --device cpu and "
                "--output FILE.csv."
            )
        assert refused(module, ["--device", "cpu"], capsys) == (
            "a trial on the CPU must say where its table goes: give --output FILE.csv."
        )
        assert {path: path.read_bytes() for path in COMMITTED.glob("*.json")} == before

    @pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
    def test_a_device_that_is_not_there_is_named(self, module, tmp_path, capsys):
        for device in ("cuda", "gpu"):
            line = refused(module, ["--device", device, "--output", tmp_path / "t.csv"], capsys)
            assert line.startswith(f"device must be one that torch can use here, got {device!r}: ")

    def test_the_gpu_that_is_asked_for_is_the_current_one(self, module, monkeypatch, tmp_path):
        """Or else events and clocks of memory, which have no tensor to go by, would measure another."""
        set_here = []
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: set_here.append(device) or 1 / 0)
        with FakeTensorMode(), pytest.raises(ZeroDivisionError):
            module.main(["--device", "cuda:1", "--output", str(tmp_path / "t.csv")])
        assert set_here == [torch.device("cuda:1")]

    def test_numbers_are_at_least_one(self, module, capsys):
        options = {comparison: "--rounds", first_call: "--processes"}
        for option in ("--scale", options.get(module, "--rounds")):
            for text in ("0", "-1", "1.5", "some"):
                assert refused(module, [option, text], capsys) == (
                    f"argument {option}: must be a whole number of at least 1, got {text!r}"
                )

    def test_an_output_that_cannot_be_written_is_found_first(self, module, tmp_path, capsys):
        (tmp_path / "in_the_way").write_text("mine")
        (tmp_path / "folder.csv").mkdir()
        for path in (tmp_path / "in_the_way" / "t.csv", tmp_path / "folder.csv"):
            line = refused(module, ["--device", "cpu", "--output", path], capsys)
            assert line.startswith("[Errno ")
            assert str(path) in line
        assert refused(module, ["--output", "t.json"], capsys).endswith("must end in .csv, got 't.json'")
        assert (tmp_path / "in_the_way").read_text() == "mine"
        assert not list((tmp_path / "folder.csv").iterdir())


@pytest.mark.usefixtures("nothing_is_measured")
def test_the_beginning_of_no_name_measures_nothing(tmp_path, capsys):
    arguments = ["--device", "cpu", "--output", tmp_path / "t.csv", "--only", "triton", "nosuch"]
    line = refused(comparison, arguments, capsys)
    assert line.startswith("only must begin the name of one of triton, default; triton, 32 MiB; ")
    assert line.endswith(", got 'nosuch'.")
    assert not list(tmp_path.iterdir())


def test_tokens_of_a_training_step_are_at_least_two(capsys):
    assert refused(training_step, ["--tokens", "1"], capsys).endswith("a whole number of at least 2, got '1'")


def test_a_fresh_process_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
    failed = subprocess.CompletedProcess([], 3, "", "")
    monkeypatch.setattr(first_call.subprocess, "run", lambda *_, **__: failed)
    line = refused(first_call, ["--device", "cpu", "--output", tmp_path / "t.csv"], capsys)
    assert line.startswith("a fresh process ended with status 3: -m kernel.benchmark.first_call --here")
    assert not list(tmp_path.iterdir())


def test_cores_are_those_that_there_are(tmp_path, capsys):
    many = len(os.sched_getaffinity(0))
    line = refused(first_call, ["--device", "cpu", "--cores", many + 1, "--output", tmp_path / "t.csv"], capsys)
    assert line == f"cores must be at most the {many} that this process may use, got {many + 1}."


def test_the_default_output_is_no_committed_table(tmp_path, monkeypatch):
    for name in ("kernel", "first_call", "statistics", "chunked", "training_step"):
        assert command._default(name) == COMMITTED.parent / "out" / f"{name}.csv"
    monkeypatch.setattr(command, "_ROOT", tmp_path)  # an installation without the repository
    monkeypatch.chdir(tmp_path)
    assert command._default("kernel") == tmp_path / "kernel.csv"


class TestReport:
    def report(self, path, **options):
        return tables.Report(path, command="c", config={"rounds": 1}, device=torch.device("cpu"), **options)

    def test_table_samples_and_sidecar_come_together_at_the_end(self, tmp_path):
        with self.report(tmp_path / "t.csv") as report:
            report.add({"x": 1}, [{"ms": 2}])
            assert sorted(p.name for p in tmp_path.iterdir()) == [
                *("t.partial.csv", "t.partial.json", "t.partial_samples.csv")
            ]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.json", "t_samples.csv"]
        assert (tmp_path / "t.csv").read_text() == "x\n1\n"
        sidecar = json.loads((tmp_path / "t.json").read_text())
        assert list(sidecar) == SCHEMA
        assert sidecar["seeds"] == [0]
        assert sidecar["commit"] is None or len(sidecar["commit"].rstrip("+")) == 40

    def test_a_full_disk_leaves_the_earlier_table_with_its_sidecar(self, tmp_path):
        for name in ("t.csv", "t.json"):
            (tmp_path / name).write_text("old")
        full = pytest.raises(OSError, match="File too large")
        with full, self.report(tmp_path / "t.csv") as report, file_size_limit(50):
            report.add({"x": 1})
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"t.csv": "old", "t.json": "old"}

    def test_no_row_is_no_table(self, tmp_path):
        nothing = pytest.raises(ValueError, match=r"^nothing was measured, and nothing is written\.$")
        with nothing, self.report(tmp_path / "t.csv"):
            pass
        with pytest.raises(KeyboardInterrupt, match=r"^nothing was measured$"), self.report(tmp_path / "t.csv"):
            raise KeyboardInterrupt
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", [head_statistics, training_step, cpu], ids=["statistics", "step", "cpu"])
def test_control_c_is_one_line_that_says_where_the_rows_are(module, tmp_path, monkeypatch, capsys):
    def measured(*_):
        yield {"x": 1}
        raise KeyboardInterrupt

    if module is cpu:
        ratios = iter([(1.0, 0.0)])

        def once(*_):
            found = next(ratios, None)
            if found is None:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(cpu, "time_ratio", once)
        monkeypatch.setattr(cpu, "measure_peak_bytes", lambda *_: 2**20)
        places = ["--output", str(tmp_path / "t.csv")]
    else:
        monkeypatch.setattr(module, "_measure", measured)
        places = ["--device", "cpu", "--scale", "2048", "--output", str(tmp_path / "t.csv")]
    assert module.main(places) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (f"interrupted: 1 rows are kept in {tmp_path / 't.partial.csv'}")
    assert not (tmp_path / "t.csv").exists()


class TestTargets:
    ROW = dict.fromkeys(comparison.COLUMNS, "") | {
        "shape": "Gemma-2-2B", "implementation": "triton, default", "label_smoothing": "0.1", "ignored": "0.0",
        "mode": "loss and gradients", "ms": "41", "matmul_ms": "10",
    }  # fmt: skip

    def test_an_empty_table_meets_nothing(self, tmp_path, capsys):
        (tmp_path / "first_call.csv").write_text("shape,process,first_seconds\nGemma-2-2B,0,1\n")
        for name, rows in (("empty", []), ("other", [self.ROW | {"shape": "other"}])):
            path = write_csv(tmp_path / f"{name}.csv", rows, comparison.COLUMNS)
            line = refused(targets, ["--table", path], capsys)
            assert line == f"{path} must hold figures that were asked for, got none in {len(rows)} rows."
        (tmp_path / "none.csv").write_text("")
        assert "got none in 0 rows" in refused(targets, ["--table", tmp_path / "none.csv"], capsys)

    def test_what_a_table_lacks_is_counted(self, tmp_path, capsys):
        path = write_csv(tmp_path / "t.csv", [self.ROW], comparison.COLUMNS)
        assert targets.main(["--table", str(path)]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("1 of 1 met; ")
        assert "0 not in the table" not in capsys.readouterr().out

    def test_first_calls_are_those_beside_the_table(self, tmp_path, capsys):
        path = write_csv(tmp_path / "t.csv", [self.ROW], comparison.COLUMNS)
        targets.main(["--table", str(path)])
        assert "first call" not in capsys.readouterr().out
        (tmp_path / "first_call.csv").write_text("shape,process,first_seconds\nGemma-2-2B,0,1\n")
        targets.main(["--table", str(path)])
        assert "first call" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("content", "reason"),
        [("x\n1\n", "must be a table of python -m kernel.benchmark: it has no column"), ("\x00", "must ")],
        ids=["another", "binary"],
    )
    def test_another_file_is_named(self, content, reason, tmp_path, capsys):
        (tmp_path / "t.csv").write_text(content)
        line = refused(targets, ["--table", tmp_path / "t.csv"], capsys)
        assert line.startswith(f"{tmp_path / 't.csv'} {reason}")

    def test_a_number_that_is_none_is_named(self, tmp_path, capsys):
        path = write_csv(tmp_path / "t.csv", [self.ROW | {"ms": "soon"}], comparison.COLUMNS)
        assert "could not convert string to float: 'soon'" in refused(targets, ["--table", path], capsys)

    def test_without_a_table_it_says_how_to_make_one(self, tmp_path, capsys):
        assert refused(targets, ["--table", tmp_path / "none.csv"], capsys) == (
            f"there is no table {tmp_path / 'none.csv'}: name one with --table, or make it on a GPU with "
            "python -m kernel.benchmark --output FILE.csv."
        )


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("kernel.benchmark_cpu", cpu),
        ("kernel.benchmark_statistics", head_statistics),
        ("kernel.huggingface.benchmark", training_step),
    ],
)
def test_former_names_run_the_same_command(former, now):
    module = importlib.import_module(former)
    assert module.main is now.main
    assert Path(module.__file__ or "").read_text().endswith('if __name__ == "__main__":\n    sys.exit(main())\n')


def test_the_command_of_a_sidecar_measures_the_same_again():
    parser = comparison._parser()
    words = ["--shapes", "GPT-2", "--only", "triton, default", "--rounds", "7", "--output", "t.csv"]
    assert command.typed(parser, parser.parse_args(words)) == (
        "python -m kernel.benchmark --shapes GPT-2 --rounds 7 --only 'triton, default'"
    )
    assert measure.AHEAD_MS > 0
