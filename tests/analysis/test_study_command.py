"""The command: what it runs, keeps and packs, on grids of a few cheap configs."""

import errno
import gzip
import json
import os
import shutil
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import paper_figures
from analysis.lab import records, registry, running
from analysis.lab.bundles import pack, unpack
from analysis.lab.cells import coverage
from analysis.lab.placement import Job, compute_job, lanes, order, visible_gpus, where
from analysis.lab.records import config_key
from analysis.lab.registry import Experiment, tidy
from analysis.lab.tables import read_table
from analysis.study import s1_ceilings as ceilings
from analysis.study.__main__ import main

DATA = Path(paper_figures.__file__).parent / "data"
FEW = [ceilings.CeilingConfig(vocab_size=v, hidden_size=64, shares=(0.5, 1.0), model="any") for v in (1000, 2000, 3000)]

MORE = [*FEW, ceilings.CeilingConfig(vocab_size=4000, hidden_size=64, shares=(0.5, 1.0), model="any")]


@pytest.fixture
def few(monkeypatch):
    """S1 with three bounds and no search."""
    monkeypatch.setattr(ceilings, "EXPERIMENT", replace(ceilings.EXPERIMENT, configs=lambda preset: FEW))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    out = tmp_path_factory.mktemp("computed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ceilings, "EXPERIMENT", replace(ceilings.EXPERIMENT, configs=lambda preset: FEW))
        assert main(["run", "S1", "--out", str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture
def finished(few, computed, tmp_path):
    """A folder with the three rows and their table."""
    return Path(shutil.copytree(computed, tmp_path / "a"))


class TestRun:
    def test_rows_table_and_sidecar_then_nothing_left(self, finished, capsys):
        table = read_table(finished / "S1.csv")
        assert table["key"].tolist() == [config_key(config) for config in FEW for _ in range(2)]
        assert json.loads((finished / "S1.json").read_text())["table"]["rows"] == 6
        assert main(["run", "S1", "--out", str(finished)]) == 0
        out = capsys.readouterr().out
        assert "0 computed now, 0 failed" in out
        assert f"S1: 3 of 3 there, wrote {finished / 'S1.csv'}" in out
        assert main(["status", "S1", "--out", str(finished)]) == 0
        assert capsys.readouterr().out.split()[-4:] == ["S1", "3", "0", "0"]

    def test_no_time_starts_nothing_and_says_so_by_its_status(self, few, tmp_path, capsys):
        assert main(["run", "S1", "--out", str(tmp_path), "--max-minutes", "1e-9"]) == 1
        assert "0 of 3 there" in capsys.readouterr().out
        assert main(["status", "S1", "--out", str(tmp_path)]) == 1
        assert not (tmp_path / "S1.csv").exists()

    def test_a_failed_config_is_reported_and_the_others_are_kept(self, monkeypatch, tmp_path, capsys):
        broken = [*FEW[:2], replace(FEW[2], shares=(1e308,))]  # a norm product that overflows
        monkeypatch.setattr(ceilings, "EXPERIMENT", replace(ceilings.EXPERIMENT, configs=lambda preset: broken))
        assert main(["run", "S1", "--out", str(tmp_path), "--workers", "1"]) == 1
        out, err = capsys.readouterr()
        assert "2 computed now, 1 failed\nS1: 2 of 3 there" in out
        line, where = err.splitlines()
        key = config_key(broken[2])
        assert line.startswith(f"failed S1/{key}: ValueError: norm_product must be finite")
        assert where == f"whole errors: {tmp_path}/rows/S*/failed/KEY.json"
        assert (tmp_path / "rows" / "S1" / "failed" / f"{key}.json").exists()
        main(["status", "S1", "--out", str(tmp_path)])
        assert capsys.readouterr().out.split()[-4:] == ["S1", "2", "1", "0"]

    def test_a_folder_in_the_way_is_an_error_and_loses_nothing(self, few, tmp_path, capsys):
        (tmp_path / "rows").write_text("in the way")
        assert main(["run", "S1", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: ")

    def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_computed(
        self, finished, monkeypatch, capsys
    ):
        """Rows that are there stay and can be read; root, whom permissions do not stop, gets the error by hand."""
        monkeypatch.setattr(ceilings, "EXPERIMENT", replace(ceilings.EXPERIMENT, configs=lambda preset: MORE))
        rows = {path: path.read_bytes() for path in (finished / "rows" / "S1").glob("*.json")}

        def refuse(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system", str(finished))

        if os.geteuid():
            (finished / "rows" / "S1").chmod(0o555)
        else:
            monkeypatch.setattr(records.tempfile, "TemporaryFile", refuse)
        monkeypatch.setattr(running, "local_engine", lambda *_, **__: pytest.fail("something is computed"))
        assert main(["run", "S1", "--out", str(finished)]) == 2
        assert capsys.readouterr().err.startswith("error: [Errno ")
        assert main(["status", "S1", "--out", str(finished)]) == 1
        assert capsys.readouterr().out.split()[-4:] == ["S1", "3", "0", "1"]
        (finished / "rows" / "S1").chmod(0o755)
        assert {path: path.read_bytes() for path in (finished / "rows" / "S1").glob("*.json")} == rows

    @pytest.mark.parametrize(
        "arguments",
        [[], ["run", "S8"], ["run", "--preset", "tiny"], ["run", "--engine", "cloud"], ["run", "--workers", "0"]],
    )
    def test_wrong_calls_are_refused(self, arguments, capsys):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert "error" in capsys.readouterr().err

    def test_help_has_examples(self, capsys):
        with pytest.raises(SystemExit, match="0"):
            main(["--help"])
        assert "python -m analysis.study run all --preset full --device cuda" in capsys.readouterr().out

    def test_plan_and_list(self, capsys):
        assert main(["plan", "all", "--preset", "full", "--device", "cuda", "--workers", "14"]) == 0
        assert "minutes with 14 workers on cuda" in capsys.readouterr().out
        assert main(["list", "S7"]) == 0
        assert "K8 not decided" in capsys.readouterr().out


class TestPlacement:
    def test_small_configs_and_numpy_stay_on_the_cpu(self):
        collapse = registry.experiment("S3")
        largest = max(collapse.configs("full"), key=lambda c: c.teacher.vocab_size * c.hidden_size)
        smallest = min(collapse.configs("full"), key=lambda c: c.teacher.vocab_size * c.hidden_size)
        assert where(collapse, largest, "cuda") == "cuda"
        assert where(collapse, largest, "cpu") == where(collapse, smallest, "cuda") == "cpu"
        slow = replace(ceilings.EXPERIMENT, seconds=lambda config, device: 1e6)
        assert where(slow, FEW[0], "cuda") == "cpu"

    def test_a_worker_finds_the_experiment_by_name(self, few):
        row = compute_job(Job("S1", FEW[0]), device="cuda")
        assert row["vocab_size"] == 1000

    def test_each_gpu_has_one_process_for_what_may_take_half_its_memory(self, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        found = lanes("cuda", 20, visible_gpus(), 6)
        large = [lane for lane in found if "large" in lane.queues]
        assert [(lane.workers, dict(lane.environment)) for lane in large] == [
            (1, {"CUDA_VISIBLE_DEVICES": "3"}),
            (1, {"CUDA_VISIBLE_DEVICES": "5"}),
        ]
        assert sum(lane.workers for lane in found) == 20
        assert all(lane.queues[-1] == "cpu" for lane in found)  # nobody idles while a core's work is left
        alone = lanes("cuda", 20, visible_gpus(), 6, alone=True)
        counts = [
            sum(lane.workers for lane in alone if lane.environment.get("CUDA_VISIBLE_DEVICES") == g) for g in "35"
        ]
        assert counts == [1, 6]
        assert [lane.workers for lane in alone if "whole" in lane.queues] == [1]

    @pytest.mark.parametrize("alone", [False, True])
    @pytest.mark.parametrize("gpus", [["0"], ["0", "1", "2", "3"]])
    @pytest.mark.parametrize("workers", [1, 2, 3, 5, 9, 40])
    def test_there_are_as_many_processes_as_were_asked_for(self, workers, gpus, alone):
        found = lanes("cuda", workers, gpus, 6, alone=alone)
        assert sum(lane.workers for lane in found) == workers
        assert {"whole", "large", "gpu", "cpu"} <= {name for lane in found if lane.workers for name in lane.queues}
        each = [sum(lane.workers for lane in found if lane.environment.get("CUDA_VISIBLE_DEVICES") == g) for g in gpus]
        assert max(each) <= 6
        assert max(each[alone:], default=0) - min(each[alone:], default=0) <= 1  # those that share do so evenly

    def test_what_may_be_left_over_comes_last(self):
        collapse = registry.experiment("S3")
        jobs = [job.config for job in order([collapse], "full", "cuda")]
        corner = [c for c in jobs if c.teacher.vocab_size == 32768 and c.hidden_size == 1024]
        assert len(corner) >= 100
        assert jobs[-len(corner) :] == corner
        assert {collapse.leftover(c) for c in collapse.configs("quick")} == {0}

    @pytest.mark.parametrize("names", [["S3"], ["S4"], ["S5"], ["S7"], ["all"]])
    def test_a_cut_run_leaves_complete_cells(self, names):
        """Wherever it is cut, fewer rows are of no use than a cell has seeds, with its twins."""
        studies = registry.experiments(names)

        def family(job):
            study = registry.experiment(job.experiment)
            return study.twin(study.cell(job.config))

        jobs = list(order(studies, "full", "cpu"))
        assert len(jobs) == len(set(jobs)) == sum(len(study.configs("full")) for study in studies)
        largest = max(Counter((job.experiment, family(job)) for job in jobs).values())
        for part in (2, 5, 9):
            finished = {config_key(job.config) for job in jobs[: part * len(jobs) // 10]}
            used = frozenset().union(*(coverage(study, study.configs("full"), finished).keys for study in studies))
            assert used <= finished
            assert len(finished) - len(used) < largest

    @pytest.mark.parametrize("command", ["run", "plan"])
    @pytest.mark.parametrize("device", ["cuda:1", "gpu", "mps"])
    def test_one_gpu_is_chosen_by_what_is_visible_not_by_number(self, command, device, few, tmp_path, capsys):
        out = ["--out", str(tmp_path / "out")] if command == "run" else []
        assert main([command, "S1", "--device", device, *out]) == 2
        assert capsys.readouterr().err == (
            "error: device must be 'cpu' or 'cuda', which takes every visible GPU (CUDA_VISIBLE_DEVICES chooses), "
            f"got {device!r}.\n"
        )
        assert not (tmp_path / "out").exists()

    def test_without_a_gpu_cuda_is_refused(self, few, tmp_path, capsys):
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
        assert main(["run", "S1", "--device", "cuda", "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err == "error: device must be 'cpu' where there is no GPU, got 'cuda'.\n"


class TestPack:
    def test_rows_move_to_another_folder_unchanged(self, finished, tmp_path):
        assert pack(finished, tmp_path / "x" / "rows.gz") == 3
        assert unpack(tmp_path / "b", tmp_path / "x" / "rows.gz") == (3, 0)
        assert unpack(tmp_path / "b", tmp_path / "x" / "rows.gz") == (0, 3)
        one, two = (
            {p.name: p.read_text() for p in (f / "rows" / "S1").glob("*.json")} for f in (finished, tmp_path / "b")
        )
        assert len(one) == 3
        assert {k: json.loads(v) for k, v in one.items()} == {k: json.loads(v) for k, v in two.items()}
        pack(tmp_path / "b", tmp_path / "again.gz")
        assert (tmp_path / "again.gz").read_bytes() == (tmp_path / "x" / "rows.gz").read_bytes()

    def test_few_digits_and_xz_make_it_smaller(self, finished, tmp_path):
        pack(finished, tmp_path / "rows.gz")
        assert pack(finished, tmp_path / "rows.xz", digits=4) == 3
        assert unpack(tmp_path / "b", tmp_path / "rows.xz") == (3, 0)
        assert (tmp_path / "rows.xz").stat().st_size < (tmp_path / "rows.gz").stat().st_size
        one, two = (running.table(registry.experiment("S1"), "full", f) for f in (finished, tmp_path / "b"))
        assert one["vocab_size"].tolist() == two["vocab_size"].tolist()
        np.testing.assert_allclose(two["simplex_gap"], one["simplex_gap"], rtol=5e-4)

    def test_by_the_command(self, finished, tmp_path, capsys):
        assert main(["pack", str(tmp_path / "r.gz"), "--out", str(finished)]) == 0
        assert main(["unpack", str(tmp_path / "r.gz"), "--out", str(tmp_path / "b")]) == 0
        assert "3 rows added" in capsys.readouterr().out
        assert running.progress(registry.experiment("S1"), "quick", tmp_path / "b").done == 3

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ({"experiment": "S8", "key": "0" * 20}, "experiment must be one of"),
            ({"experiment": "S1", "key": "../../evil"}, "key of 20 hexadecimal digits"),
            ({"experiment": "S1", "key": "0" * 20, "row": {}}, "must have config, row and environment"),
        ],
    )
    def test_what_is_no_packed_row_is_refused(self, line, reason, tmp_path):
        (tmp_path / "bad.gz").write_bytes(gzip.compress(json.dumps(line).encode()))
        with pytest.raises(ValueError, match=f"line 1: .*{reason}"):
            unpack(tmp_path, tmp_path / "bad.gz")

    def test_a_line_of_no_row_adds_nothing_of_the_file(self, finished, tmp_path):
        pack(finished, tmp_path / "rows.gz")
        good = gzip.decompress((tmp_path / "rows.gz").read_bytes())
        for bad in (b"[]\n", b"{\n", b'{"experiment": "S8"}\n', b"\xff\n"):
            (tmp_path / "bad.gz").write_bytes(gzip.compress(good + bad))
            with pytest.raises(ValueError, match=r"bad\.gz is no whole file of packed rows: line 4: "):
                unpack(tmp_path / "b", tmp_path / "bad.gz")
        assert not (tmp_path / "b").exists()

    @pytest.mark.parametrize("ending", ["gz", "xz"])
    def test_a_cut_or_damaged_file_adds_nothing_and_keeps_what_is_there(self, ending, finished, tmp_path, capsys):
        whole, bad = tmp_path / f"rows.{ending}", tmp_path / f"bad.{ending}"
        pack(finished, whole)
        content = whole.read_bytes()
        damaged = bytearray(content)
        damaged[len(content) // 2] ^= 0xFF
        cuts = [content[:length] for length in range(0, len(content), max(1, len(content) // 23))]
        before = {path: path.read_bytes() for path in finished.rglob("*.json")}
        for broken in (*cuts, bytes(damaged)):
            bad.write_bytes(broken)
            assert main(["unpack", str(bad), "--out", str(tmp_path / "b")]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {bad} is no whole file of packed rows: ")
            assert len(error.splitlines()) == 1
            assert main(["unpack", str(bad), "--out", str(finished)]) == 2
            capsys.readouterr()
        assert not (tmp_path / "b").exists()
        assert {path: path.read_bytes() for path in finished.rglob("*.json")} == before

    def test_what_is_no_file_of_rows_is_refused(self, tmp_path, capsys):
        (tmp_path / "bad.xz").write_text("plain text")
        with pytest.raises(ValueError, match=r"bad\.xz is no whole file of packed rows: it must be compressed by gzip"):
            unpack(tmp_path, tmp_path / "bad.xz")
        (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
        with pytest.raises(ValueError, match="is no whole file of packed rows: it has none"):
            unpack(tmp_path, tmp_path / "empty.gz")
        assert main(["unpack", str(tmp_path / "none.gz"), "--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith("error: [Errno 2] No such file")
        with pytest.raises(ValueError, match="must hold finished rows, got none"):
            pack(tmp_path, tmp_path / "none.gz")

    def test_its_name_does_not_matter(self, finished, tmp_path):
        pack(finished, tmp_path / "rows.xz")
        (tmp_path / "rows.xz").rename(tmp_path / "rows.gz")
        assert unpack(tmp_path / "b", tmp_path / "rows.gz") == (3, 0)

    def test_a_full_disk_is_one_error_and_a_further_call_goes_on(self, finished, tmp_path, monkeypatch, capsys):
        pack(finished, tmp_path / "rows.gz")
        kept, fsync, calls = tmp_path / "b" / "rows" / "S1", os.fsync, []

        def full(handle):
            calls.append(handle)
            if len(calls) > 2:  # a file and its folder: one row
                raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert main(["unpack", str(tmp_path / "rows.gz"), "--out", str(tmp_path / "b")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(
            f"error: [Errno 28] No space left on device; 1 rows were added, all are still in {tmp_path / 'rows.gz'}: "
        )
        assert len(error.splitlines()) == 1
        assert len(list(kept.iterdir())) == 1  # whole, and no litter
        assert unpack(tmp_path / "b", tmp_path / "rows.gz") == (2, 1)

    def test_memory_is_that_of_a_row_not_of_the_file(self, tmp_path, monkeypatch):
        """A file of 256 MiB in one line is refused having read one row's worth of it."""
        (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(2**28), compresslevel=1))
        tracemalloc.start()
        with pytest.raises(ValueError, match="line 1: a row must have fewer than 16777216 bytes"):
            unpack(tmp_path / "b", tmp_path / "bomb.gz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**26


class TestTables:
    def test_they_are_written_where_wanted_and_packed_when_large(self, finished, tmp_path, monkeypatch, capsys):
        assert main(["tables", "S1", "S2", "--out", str(finished), "--to", str(tmp_path / "t")]) == 1
        assert "S1: wrote" in (out := capsys.readouterr().out)
        assert "S2: no complete cell" in out
        assert (tmp_path / "t" / "S1.csv").read_bytes() == (finished / "S1.csv").read_bytes()
        monkeypatch.setattr(running, "_PACKED_FROM", 10)
        assert main(["tables", "S1", "--out", str(finished), "--to", str(tmp_path / "t")]) == 0
        assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["S1.csv.gz", "S1.json"]
        assert read_table(tmp_path / "t" / "S1.csv.gz").equals(read_table(finished / "S1.csv"))
        assert json.loads((tmp_path / "t" / "S1.json").read_text())["table"]["file"] == "S1.csv.gz"


def test_tidy_leaves_simple_rows_alone():
    rows = pd.DataFrame({"key": ["a"], "x": [1.0 / 3]})
    pd.testing.assert_frame_equal(tidy(rows), rows)


def test_experiments_are_described():
    for study in registry.experiments(["all"]):
        assert isinstance(study, Experiment)
        assert study.title
        assert study.seconds(study.configs("quick")[0], "cpu") > 0
