"""Tables and their sidecars: what is written is read again, and every sidecar says where its table comes from."""

import gzip
import json

import pandas as pd
import pytest
from sweep_jobs import Square

from analysis.lab.computed import write_computed
from analysis.lab.provenance import SCHEMA, made_here, made_of_rows
from analysis.lab.records import RowStore, config_key
from analysis.lab.tables import find_table, read_sidecar, read_table, shortened, write_table

MADE = {**dict.fromkeys(SCHEMA, "known"), "config": {}}


def test_a_sidecar_of_rows_says_what_made_them(tmp_path):
    store, configs = RowStore(tmp_path / "rows"), [Square(n) for n in range(3)]
    for n in range(2):
        row = {"data_seed": n, "model_seed": 7, "device": "cpu", "wall_seconds": 2.0, "converged": n == 0}
        store.write(configs[n], row, {"torch": "2.13.0", "commit": None, "gpu": "H200"})
    store.write_failure(configs[2], "no memory", {})
    made = made_of_rows("python -m x", store, configs)
    assert set(SCHEMA) <= set(made)
    assert (made["command"], made["seeds"]) == ("python -m x", {"data": [0, 1], "model": [7]})
    assert (made["device"], made["wall_seconds"], made["versions"]) == (["cpu"], 4.0, {"torch": ["2.13.0"]})
    assert (made["commit"], made["grid"]["not_converged"]) == (None, 1)
    assert "outside a repository" in made["note"]
    assert made["grid"]["failed"] == {config_key(configs[2]): "no memory"}
    assert made_of_rows("", store, configs[::-1])["config"] == made["config"]


@pytest.mark.parametrize("note", [None, "seeds: nothing is random"])
def test_a_table_is_written_outside_a_repository_too(tmp_path, monkeypatch, note):
    monkeypatch.delenv("CONFIDENCE_CEILING_COMMIT", raising=False)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "none"))  # as an installation from a wheel
    made = made_here("python -m x", config={}, seeds=[0], wall_seconds=1.0, note=note)
    assert made["commit"] is None
    write_table(pd.DataFrame({"x": [1]}), tmp_path / "t.csv", made)
    said = json.loads((tmp_path / "t.json").read_text())["note"]
    assert "outside a repository" in said
    assert (note or "") in said


def test_it_counts_rows_of_the_table_and_the_others_apart(tmp_path):
    store, configs = RowStore(tmp_path / "rows"), [Square(n) for n in range(4)]
    for n in range(3):
        row = {"data_seed": n, "device": ("cuda", "cpu", "cuda")[n], "cpu_seconds": 10.0**n, "converged": n == 0}
        store.write(configs[n], row, {"torch": ("1", "2", "3")[n], "gpu": "H200", "commit": "abc"})
    store.write_failure(configs[3], "no memory", {})
    made = made_of_rows("", store, configs, {config_key(config) for config in configs[:2]})
    assert (made["seeds"]["data"], made["device"], made["versions"]) == ([0, 1], ["H200", "cpu"], {"torch": ["1", "2"]})
    assert (made["grid"]["configs"], made["grid"]["not_converged"], made["grid"]["cpu_seconds"]) == (2, 1, 11.0)
    left_out = {"configs": 1, "wall_seconds": None, "cpu_seconds": 100.0, "not_converged": 1}
    assert made["grid"]["left_out"] == left_out


def test_a_large_table_is_packed_and_its_sidecar_says_so(tmp_path):
    table, path = pd.DataFrame({"x": [1, 2]}), tmp_path / "t.csv"
    size = len(table.to_csv(index=False))
    for packed_from, name in ((size, "t.csv"), (size - 1, "t.csv.gz"), (size, "t.csv")):
        sidecar = json.loads(write_table(table, path, MADE, packed_from=packed_from).read_text())
        assert sidecar["table"] == {"file": name, "rows": 2, "columns": ["x"], "constants": {}}
        assert sorted(file.name for file in tmp_path.iterdir()) == [name, "t.json"]  # one of the two forms
        assert read_table(tmp_path / name).equals(table)


def test_a_small_table_is_read_whole(tmp_path):
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
    small, constants = shortened(table, 6, exact=["k"])
    beside = write_table(small, tmp_path / "t.csv", {**MADE, "grid": {"cells": 2}}, constants=constants)
    assert (tmp_path / "t.csv").read_text() == "n,k,x\n0,0.0009765625,0.333333\n1,0.1,6.66667e-08\n"
    assert json.loads(beside.read_text())["table"]["constants"] == {"norm": "free", "cap": None, "top": "inf"}
    read = read_table(tmp_path / "t.csv")
    assert list(read) == ["n", "k", "x", "norm", "cap", "top"]
    assert read["norm"].tolist() == ["free"] * 2
    assert read["cap"].isna().all()
    assert read["top"].tolist() == [float("inf")] * 2
    assert read_sidecar(tmp_path / "t.csv")["grid"] == {"cells": 2}
    assert find_table(tmp_path, "t") == tmp_path / "t.csv"
    assert find_table(tmp_path, "u") is None
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
    (tmp_path / "t.csv").unlink()
    packed = find_table(tmp_path, "t")
    assert packed is not None
    assert read_table(packed).equals(read)
    beside.unlink()
    assert list(read_table(packed)) == ["n", "k", "x"]  # any other CSV


def test_computed_rows_are_written_with_what_made_them(tmp_path):
    lines = ({"n": n, "x": n / 3, "name": ""} for n in range(2))
    count = write_computed(
        tmp_path / "t.csv", lines, command="python -m x", config={"a": (1,)}, digits=3, note="nothing is random"
    )
    assert count == 2
    assert (tmp_path / "t.csv").read_text() == "n,x,name\n0,0,\n1,0.333,\n"
    sidecar = read_sidecar(tmp_path / "t.csv")
    assert list(sidecar)[: len(SCHEMA)] == list(SCHEMA)
    assert (sidecar["config"], sidecar["seeds"], sidecar["note"]) == ({"a": [1]}, None, "nothing is random")
    assert sidecar["wall_seconds"] >= 0
    assert sidecar["versions"]["numpy"]


def test_a_sidecar_that_does_not_say_it_all_is_refused(tmp_path):
    table = pd.DataFrame({"x": [1]})
    with pytest.raises(ValueError, match=r"^a sidecar must have \(.*\), got none of \['device'\]\.$"):
        write_table(table, tmp_path / "t.csv", {k: v for k, v in MADE.items() if k != "device"})
    with pytest.raises(ValueError, match=r"why a value is null, got no note for \['seeds'\]\.$"):
        write_table(table, tmp_path / "t.csv", {**MADE, "seeds": None})
    assert list(tmp_path.iterdir()) == []
    write_table(table, tmp_path / "t.csv", {**MADE, "seeds": None, "note": "nothing is random"})


def test_a_table_of_this_process_has_its_versions():
    made = made_here("python -m x", config={}, seeds=[0], wall_seconds=1.0)
    assert list(made) == list(SCHEMA)
    assert made["versions"]["python"]
    assert "commit" not in made["versions"]
