"""Rows on disk: names that last, files that are whole, tables that say where they come from."""

import gzip
import json
import math
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
from sweep_jobs import Square

from analysis import records
from analysis.bottleneck import FitConfig
from analysis.files import write_atomically
from analysis.records import (
    RowStore,
    config_key,
    environment,
    find_table,
    read_sidecar,
    read_table,
    write_table,
)
from analysis.teachers import TeacherConfig

MADE_BY = {"python": "3", "commit": None}


def test_keys_do_not_change():
    """Committed rows are found by these: a change here orphans them, and needs a new ROWS_VERSION."""
    config = FitConfig(teacher=TeacherConfig(kind="lowrank", seed=2), hidden_size=16, temperature=0.25)
    assert config_key(config) == "d9a7fda4c5a4a211fd90"


def test_every_field_that_is_set_changes_the_key():
    base = FitConfig(hidden_size=4)
    others = [
        FitConfig(hidden_size=8),
        FitConfig(hidden_size=4, seed=1),
        FitConfig(hidden_size=4, softcap=5.0),
        FitConfig(hidden_size=4, softcap=5.0, softcap_form="gain"),
        FitConfig(hidden_size=4, teacher=TeacherConfig(seed=1)),
        FitConfig(hidden_size=4, teacher=TeacherConfig(samples_per_context=None)),
    ]
    assert len({config_key(config) for config in [base, *others]}) == 7


def test_a_new_field_at_its_default_keeps_the_key_and_integral_floats_are_ints():
    def make(*fields):
        namespace = {"__annotations__": dict(fields and [(f, float) for f, _ in fields])}
        return dataclass(frozen=True)(type("Config", (), {**namespace, **dict(fields)}))

    assert config_key(make(("a", 0.0))(a=2.0)) == config_key(make(("a", 0.0), ("b", 1.0))(a=2))
    assert config_key(make(("a", 0.0))(a=2.0)) != config_key(make(("a", 0.0), ("b", 1.0))(a=2.0, b=2.0))


def test_what_json_has_not_is_no_config():
    @dataclass
    class Config:
        value: object = field(default_factory=list)

    with pytest.raises(TypeError, match="not JSON serializable"):
        config_key(Config({1, 2}))
    with pytest.raises(TypeError, match=r"^config must be an instance of a dataclass, got the class Config\.$"):
        config_key(Config)
    with pytest.raises(ValueError, match="JSON compliant"):
        config_key(Config(math.nan))


def test_rows_come_back_as_they_were(tmp_path):
    store, row = RowStore(tmp_path), {"a": 0.1, "b": -math.inf, "c": None, "d": True, "e": "text"}
    store.write(Square(3), row, MADE_BY)
    stored = store.read(Square(3))
    assert stored["row"] == row
    assert stored["config"]["number"] == 3
    assert stored["environment"] == MADE_BY
    (file,) = tmp_path.iterdir()
    json.loads(file.read_text(), parse_constant=pytest.fail)  # strict JSON, without Infinity


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"key"', b"\x00" * 100, b"\xff\xfe", b"[]", b"null", b'{"key": "other", "row": {}}']
)
def test_a_damaged_file_is_no_row(tmp_path, content):
    (tmp_path / f"{config_key(Square(3))}.json").write_bytes(content)
    assert RowStore(tmp_path).read(Square(3)) is None


def test_a_row_is_missing_until_it_is_whole(tmp_path):
    store = RowStore(tmp_path)
    store.write(Square(3), {"a": 1}, MADE_BY)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for length in range(0, len(whole) - 2, 7):
        file.write_bytes(whole[:length])
        assert store.read(Square(3)) is None


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_appears_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.append(path.exists()), replace(old, new)))
    write_atomically(path, "text")
    assert seen == [False]  # until the last step there was nothing to read
    assert path.read_text() == "text"


def test_files_are_readable_by_others(tmp_path):
    write_atomically(tmp_path / "deep" / "file", "x")
    assert stat.S_IMODE((tmp_path / "deep" / "file").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        RowStore(tmp_path / "file").prepare()


def test_reading_makes_no_folder(tmp_path):
    assert RowStore(tmp_path / "none").read(Square(3)) is None
    assert not (tmp_path / "none").exists()


def test_a_failure_is_kept_until_a_row_replaces_it(tmp_path):
    store = RowStore(tmp_path)
    store.write_failure(Square(3), "no memory", MADE_BY)
    assert store.failure(Square(3)) == "no memory"
    assert store.read(Square(3)) is None
    store.write(Square(3), {"a": 1}, MADE_BY)
    assert store.failure(Square(3)) is None


def test_the_table_and_its_sidecar(tmp_path):
    store, configs = RowStore(tmp_path / "rows"), [Square(n) for n in range(3)]
    for n in range(2):
        row = {"data_seed": n, "model_seed": 7, "device": "cpu", "wall_seconds": 2.0, "converged": n == 0, "x": 0.1 + n}
        store.write(configs[n], row, {"torch": "2.13.0", "commit": None})
    store.write_failure(configs[2], "no memory", MADE_BY)
    table = pd.DataFrame([store.read(config)["row"] for config in configs[:2]])
    beside = write_table(table, tmp_path / "table.csv", store, configs)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table)  # every digit
    sidecar = json.loads(beside.read_text())
    assert beside == tmp_path / "table.json"
    assert (sidecar["rows"], sidecar["data_seeds"], sidecar["model_seeds"]) == (2, [0, 1], [7])
    assert (sidecar["devices"], sidecar["wall_seconds"], sidecar["not_converged"]) == (["cpu"], 4.0, 1)
    assert sidecar["environment"] == {"torch": ["2.13.0"], "commit": []}
    assert sidecar["failed"] == {config_key(configs[2]): "no memory"}
    again = json.loads(write_table(table, tmp_path / "other.csv", store, configs[::-1]).read_text())
    assert again["configs_hash"] == sidecar["configs_hash"]


def test_the_sidecar_counts_rows_of_the_table_and_the_others_apart(tmp_path):
    store, configs = RowStore(tmp_path / "rows"), [Square(n) for n in range(4)]
    for n in range(3):
        row = {"data_seed": n, "device": ("cpu", "cpu", "cuda")[n], "cpu_seconds": 10.0**n, "converged": n == 0}
        store.write(configs[n], row, {"torch": ("1", "2", "3")[n]})
    store.write_failure(configs[3], "no memory", MADE_BY)
    lines = [{"key": config_key(config), "x": x} for config in configs[:2] for x in (1, 2, 3)]  # three of each
    sidecar = json.loads(write_table(pd.DataFrame(lines), tmp_path / "t.csv", store, configs).read_text())
    assert (sidecar["rows"], sidecar["configs"], sidecar["not_converged"]) == (6, 2, 1)
    assert (sidecar["data_seeds"], sidecar["devices"], sidecar["cpu_seconds"]) == ([0, 1], ["cpu"], 11.0)
    assert sidecar["environment"] == {"torch": ["1", "2"]}
    assert sidecar["left_out"] == {"configs": 1, "wall_seconds": None, "cpu_seconds": 100.0, "not_converged": 1}
    assert sidecar["failed"] == {config_key(configs[3]): "no memory"}


def test_a_large_table_is_packed_and_its_sidecar_says_so(tmp_path):
    store, table, path = RowStore(tmp_path / "rows"), pd.DataFrame({"x": [1, 2]}), tmp_path / "t.csv"
    size = len(table.to_csv(index=False))
    for packed_from, name in ((size, "t.csv"), (size - 1, "t.csv.gz"), (size, "t.csv")):
        sidecar = json.loads(write_table(table, path, store, [], packed_from=packed_from).read_text())
        assert sidecar["table"] == name
        assert sorted(file.name for file in tmp_path.iterdir()) == [name, "t.json"]  # one of the two forms
        assert read_table(tmp_path / name).equals(table)


def test_a_small_table_is_read_whole(tmp_path):
    store, configs = RowStore(tmp_path / "rows"), [Square(n) for n in range(2)]
    table = pd.DataFrame(
        {
            "n": [0, 1],
            "k": [1 / 1024, 0.1],
            "x": [1 / 3, 2e-7 / 3],
            "norm": ["free", "free"],
            "cap": [None, None],
            "top": [float("inf")] * 2,
            "wall_seconds": [1.0, 2.0],
        }
    )
    beside = write_table(table, tmp_path / "t.csv", store, configs, digits=6, exact=["k"], more={"cells": 2})
    assert (tmp_path / "t.csv").read_text() == "n,k,x\n0,0.0009765625,0.333333\n1,0.1,6.66667e-08\n"
    assert json.loads(beside.read_text())["constants"] == {"norm": "free", "cap": None, "top": "inf"}
    read = read_table(tmp_path / "t.csv")
    assert list(read) == ["n", "k", "x", "norm", "cap", "top"]
    assert read["norm"].tolist() == ["free"] * 2
    assert read["cap"].isna().all()
    assert read["top"].tolist() == [float("inf")] * 2
    assert read_sidecar(tmp_path / "t.csv")["cells"] == 2
    assert find_table(tmp_path, "t") == tmp_path / "t.csv"
    assert find_table(tmp_path, "u") is None
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    (tmp_path / "t.csv").unlink()
    packed = find_table(tmp_path, "t")
    assert packed is not None
    assert read_table(packed).equals(read)
    beside.unlink()
    assert list(read_table(packed)) == ["n", "k", "x"]  # any other CSV


def test_the_environment_names_versions_and_commit(monkeypatch):
    found = environment()
    assert found["torch"]
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment()["commit"] is None


def test_records_need_no_torch():
    code = "import sys, analysis.records; sys.exit('torch' in sys.modules)"
    root = Path(records.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
