"""Sweeps: every config once, whatever fails or is killed in between."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from sweep_jobs import Square, jobs, square, threads

import analysis
from analysis.lab.records import RowStore, config_key
from analysis.lab.sweep import read_rows, run
from analysis.lab.workers import Lane, available_cores, local_engine

JOBS = Path(__file__).parent.parent / "sweep_jobs.py"


def row_files(folder):
    return {path: path.read_bytes() for path in Path(folder).glob("*.json")}


def test_rows_of_all_cores_in_the_order_of_the_configs(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    configs = [Square(n, seconds=0.05 * (n == 0)) for n in (0, 3, 1, 2, 3)]
    result = run(square, configs, tmp_path, workers=2)
    assert result.rows["number"].tolist() == [0, 3, 1, 2]  # equal configs are one
    assert result.rows["square"].tolist() == [0, 9, 1, 4]
    assert result.rows["key"].tolist() == [config_key(c) for c in configs[:4]]
    assert (result.computed, result.failures) == (4, {})
    assert run(threads, configs[:1], tmp_path / "threads").rows.loc[0, "torch"] == 1
    assert set(result.rows["omp"]) == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert result.rows["process"].nunique() == 2
    assert capfd.readouterr().err == ""  # the progress bar is for terminals

    before = row_files(tmp_path)
    again = run(square, configs, tmp_path)
    assert again.computed == 0
    assert again.rows.equals(result.rows)
    assert row_files(tmp_path) == before


def test_a_row_of_before_a_field_existed_has_its_default(tmp_path):
    @dataclass(frozen=True)
    class Grown:
        n: int
        late: float = 0.0

        def columns(self):
            return {"n": self.n, "late": self.late}

    store = RowStore(tmp_path)
    store.write(Grown(1), {"n": 1, "x": 2.0}, {})
    store.write(Grown(2, late=0.5), {"n": 2, "late": 0.5, "x": 3.0}, {})
    assert read_rows(store, [Grown(1), Grown(2, late=0.5)])["late"].tolist() == [0.0, 0.5]


def test_lanes_take_their_queues_in_turn_and_lend_a_hand(tmp_path, monkeypatch):
    """The fast lane has one slow job of its own; the other lane's worker computes what is left, in its environment."""
    lanes = [
        Lane(1, ("slow", "rest"), {"OMP_NUM_THREADS": "7"}),
        Lane(1, ("rest",), {"OMP_NUM_THREADS": "5"}),
    ]
    configs = [Square(n, seconds=2.0 * (n == 0)) for n in range(8)]
    engine = partial(local_engine, lanes=lanes, queue=lambda config: "rest" if config.number else "slow")
    result = run(square, configs, tmp_path, engine=engine)
    assert result.rows["number"].tolist() == list(range(8))
    assert result.rows["omp"].tolist()[0] == "7"
    assert "5" in set(result.rows["omp"][1:])
    with pytest.raises(ValueError, match=r"^lanes must serve every queue, got none for \['slow'\]\.$"):
        run(square, [Square(9)], tmp_path, engine=partial(local_engine, lanes=lanes[1:], queue=lambda _: "slow"))


def test_failures_are_recorded_and_the_sweep_goes_on(tmp_path):
    events = ["", "error", "die", "tensor", "inf", ""]
    configs = [Square(n, event=event) for n, event in enumerate(events)]
    result = run(square, configs, tmp_path, workers=1)
    assert result.rows["number"].tolist() == [0, 4, 5]
    assert result.rows["square"].tolist() == [0, float("inf"), 25]
    errors = [result.failures[config_key(c)] for c in configs[1:4]]
    assert "RuntimeError: cannot square 1" in errors[0]
    assert errors[1] == "the worker process died with exit code -9"
    assert "Tensor is not JSON serializable" in errors[2]
    stored = json.loads((tmp_path / "failed" / f"{config_key(configs[1])}.json").read_text())
    assert stored["error"] == errors[0]

    (tmp_path / f"{config_key(configs[0])}.json").write_text(
        "{"
    )  # damaged: made again, as the failures are tried again
    again = run(square, configs, tmp_path, workers=1)
    assert again.computed == 1
    assert set(again.failures) == set(result.failures)
    assert again.rows["square"].tolist() == [0, float("inf"), 25]


def kill_a_sweep(folder, seconds, ready):
    """Start a sweep of ``jobs`` in another process, kill -9 it as soon as ``ready()``, see that its workers end too."""
    root = str(Path(analysis.__file__).parent.parent)
    command = [sys.executable, str(JOBS), str(folder), str(seconds)]
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root})
    deadline = time.monotonic() + 120
    while not ready():
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert gone
    assert not alive


def test_workers_end_with_the_sweep_in_the_middle_of_a_long_job(tmp_path):
    kill_a_sweep(tmp_path, 300, (tmp_path / "log").exists)


@pytest.mark.parametrize("moment", [3, 12])
def test_kill_9_loses_and_repeats_no_finished_row(tmp_path, moment):
    kill_a_sweep(tmp_path, 0.1, lambda: len(row_files(tmp_path / "rows")) >= moment)
    finished = row_files(tmp_path / "rows")
    configs = jobs(str(tmp_path))
    assert moment <= len(finished) < len(configs)

    result = run(square, configs, tmp_path / "rows", workers=2)
    assert result.rows["number"].tolist() == list(range(len(configs)))
    assert result.computed == len(configs) - len(finished)
    assert {path: row_files(tmp_path / "rows")[path] for path in finished} == finished
    computed = [int(line) for line in (tmp_path / "log").read_text().split()]
    kept = {json.loads(content)["row"]["number"] for content in finished.values()}
    assert all(computed.count(number) == 1 for number in kept)
    assert all(computed.count(config.number) <= 2 for config in configs)  # at most what was under way


def test_a_sweep_that_cannot_store_stops_with_the_reason(tmp_path, monkeypatch):
    from analysis.lab import records

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "write_atomically", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        run(square, [Square(1), Square(2)], tmp_path, workers=1)
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_computed(tmp_path):
    (tmp_path / "rows").write_text("in the way")
    with pytest.raises(FileExistsError):
        run(square, [Square(1, log=str(tmp_path / "log"))], tmp_path / "rows")
    assert not (tmp_path / "log").exists()


def test_nothing_to_do_starts_nothing(tmp_path):
    result = run(square, [], tmp_path)
    assert (len(result.rows), result.computed, result.failures) == (0, 0, {})
    assert read_rows(tmp_path, [Square(1)]).empty


def test_workers_are_at_least_one_and_cores_are_counted(tmp_path):
    with pytest.raises(ValueError, match=r"^workers must be at least 1, got 0\.$"):
        run(square, [Square(1)], tmp_path, workers=0)
    assert available_cores() == len(os.sched_getaffinity(0))


def _spoil(folder, config, column, value):
    path = folder / f"{config_key(config)}.json"
    stored = json.loads(path.read_text())
    stored["row"][column] = value
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize("value", ["nine", "9"])
def test_a_text_where_other_rows_hold_a_number_is_no_row(tmp_path, value):
    grid = [Square(n) for n in range(1, 4)]
    want = run(square, grid, tmp_path, workers=1).rows
    _spoil(tmp_path, grid[2], "square", value)
    name = f"{config_key(grid[2])}.json"
    with pytest.raises(ValueError, match=rf"rows must hold one kind of value in square, got '{value}' in {name} alone"):
        read_rows(tmp_path, grid)
    again = run(square, grid, tmp_path, workers=1)  # it counts as not computed
    assert again.computed == 1
    assert again.rows["square"].tolist() == want["square"].tolist()


def test_measurements_inside_a_row_are_compared_too(tmp_path):
    grid = [Square(n) for n in range(1, 4)]
    run(square, grid, tmp_path, workers=1)
    for config in grid:
        _spoil(tmp_path, config, "measurements", [{"error": 0.1}, {"error": "0.2" if config is grid[1] else 0.2}])
    name = f"{config_key(grid[1])}.json"
    with pytest.raises(
        ValueError, match=rf"rows must hold one kind of value in measurements.error, got '0.2' in {name}"
    ):
        read_rows(tmp_path, grid)
