"""Files that belong together appear together, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analysis.lab.files import write_atomically, write_together


def test_a_second_file_that_fails_leaves_the_first_as_it_was(tmp_path, monkeypatch):
    table, sidecar = tmp_path / "t.csv", tmp_path / "t.json"
    write_together({table: "old", sidecar: b"old"})
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"^\[Errno 28\] No space left on device: '{sidecar}'$"):
        write_together({table: "new", sidecar: "new"})
    assert (table.read_text(), sidecar.read_text()) == ("old", "old")
    assert sorted(tmp_path.iterdir()) == [table, sidecar]


def test_an_interruption_leaves_no_litter(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_together({tmp_path / "a": "1", tmp_path / "b": "2"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_and_nothing_else_is_written(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(IsADirectoryError, match=rf"Is a directory: '{tmp_path}/b'"):
        write_together({tmp_path / "a": "1", tmp_path / "b": "2"})
    assert list(tmp_path.iterdir()) == [tmp_path / "b"]


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path):
    (tmp_path / "a").write_text("in the way")
    with pytest.raises(OSError, match=rf"(Not a directory|File exists): '{tmp_path}/a"):
        write_atomically(tmp_path / "a" / "t.csv", "1")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_device_is_written_as_it_stands():
    write_atomically(Path("/dev/null"), "text")
    assert not Path("/dev/null").is_file()
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        write_atomically(Path("/dev/full"), "text")
