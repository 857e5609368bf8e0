"""Rows on disk: names that last, files that are whole, tables that say where they come from."""

import json
import math
import os
import stat
import subprocess
from dataclasses import dataclass, field

import pytest
from sweep_jobs import Square

from analysis.bottleneck import FitConfig
from analysis.lab.files import write_atomically
from analysis.lab.provenance import environment
from analysis.lab.records import RowStore, config_key
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


def test_a_row_of_an_earlier_measurement_is_none_and_gives_way(tmp_path):
    """Nobody reads it, it is computed again, and it never replaces a newer one, whichever is unpacked first."""
    old, new = RowStore(tmp_path / "old"), RowStore(tmp_path / "new", measurement_version=2)
    old.write(Square(3), {"accuracy": 0.5}, MADE_BY)
    new.write(Square(3), {"accuracy": 0.4}, MADE_BY)
    ((earlier,), (later,)) = old.finished(), new.finished()
    assert later["key"] == earlier["key"] == config_key(Square(3))
    assert RowStore(tmp_path / "old", measurement_version=2).read(Square(3)) is None
    assert old.insert(later)
    assert not new.insert(earlier)
    for folder in ("old", "new"):
        assert RowStore(tmp_path / folder, measurement_version=2).read(Square(3)) == later


def test_a_measurement_that_is_no_number_makes_no_row(tmp_path):
    store = RowStore(tmp_path)
    store.write(Square(3), {}, MADE_BY)
    (stored,) = store.finished()
    with pytest.raises(ValueError, match="stored must have a whole number as measurement_version, got 'two'"):
        store.insert({**stored, "measurement_version": "two"})
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**stored, "measurement_version": "two"}))
    assert store.read(Square(3)) is None


def test_a_failure_is_kept_until_a_row_replaces_it(tmp_path):
    store = RowStore(tmp_path)
    store.write_failure(Square(3), "no memory", MADE_BY)
    assert store.failure(Square(3)) == "no memory"
    assert store.read(Square(3)) is None
    store.write(Square(3), {"a": 1}, MADE_BY)
    assert store.failure(Square(3)) is None


def test_the_environment_names_versions_and_commit(monkeypatch):
    found = environment()
    assert found["torch"]
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40

    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert environment()["commit"] is None
