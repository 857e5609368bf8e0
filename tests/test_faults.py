"""Faults of the smaller commands: each is one line and a status, found before anything is computed or overwritten.

Those of the study are in ``analysis/test_study_faults.py``, those of the benchmarks in ``kernel/test_benchmark_faults.py``.
"""

from __future__ import annotations

import gzip
import os
import shutil
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import file_size_limit, refused

import analysis.audit
import analysis.calibration.__main__ as coverage
import analysis.instruction as instruction
import paper_figures.__main__ as figures
from analysis import caps_table, command, language_models, transition_table
from analysis.audit import __main__ as audit
from paper_figures import tables

ROW = {"vocab_size": 4, "activity_index": 1.25}
WRITERS = {  # command -> module, the name of what it computes, that of its option, and what a test lets it compute
    "caps_table": (caps_table, "rows", (), [ROW]),
    "transition_table": (transition_table, "rows", (), [ROW]),
    "calibration": (coverage, "simulate", ("--out",), pd.DataFrame([ROW])),
}


@pytest.fixture
def in_the_way(tmp_path):
    """A file where a folder should be."""
    path = tmp_path / "in_the_way"
    path.write_text("mine")
    return path


@pytest.fixture
def read_only(tmp_path, monkeypatch):
    """A folder that cannot be written, also by root, whom permissions do not stop."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid():
        folder.chmod(0o555)
    else:
        from analysis.lab import files

        def refuse(*_, dir, **__):
            raise OSError(30, "Read-only file system", str(dir))

        monkeypatch.setattr(files.tempfile, "TemporaryFile", refuse)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("name", WRITERS)
class TestTables:
    @pytest.fixture(autouse=True)
    def nothing_is_computed(self, name, monkeypatch):
        module, what, *_ = WRITERS[name]

        def rows():
            pytest.fail("something is computed")
            yield

        monkeypatch.setattr(module, what, rows if what == "rows" else lambda **_: next(rows()))

    def test_a_file_that_cannot_be_written_is_found_first(self, name, in_the_way, read_only, capsys):
        module, _, option, _ = WRITERS[name]
        for path in (in_the_way / "t.csv", read_only / "t.csv", read_only / "new" / "t.csv"):
            line = refused(module, [*option, path], capsys)
            assert line.startswith("[Errno ")
            assert str(path) in line
        assert in_the_way.read_text() == "mine"
        assert not list(read_only.iterdir())

    def test_a_folder_is_no_table(self, name, tmp_path, capsys):
        module, _, option, _ = WRITERS[name]
        (tmp_path / "t.csv").mkdir()
        assert refused(module, [*option, tmp_path / "t.csv"], capsys) == (
            f"[Errno 21] Is a directory: '{tmp_path / 't.csv'}'"
        )

    def test_a_table_that_would_overwrite_its_sidecar_is_refused(self, name, tmp_path, capsys):
        module, _, option, _ = WRITERS[name]
        assert refused(module, [*option, tmp_path / "t.json"], capsys).endswith(
            f"must end in .csv, got '{tmp_path / 't.json'}'"
        )


@pytest.mark.parametrize("name", WRITERS)
class TestTablesOfOneRow:
    @pytest.fixture(autouse=True)
    def one_row(self, name, monkeypatch):
        module, what, _, made = WRITERS[name]
        monkeypatch.setattr(module, what, lambda *_, **__: made)

    def test_by_default_no_committed_table_is_touched(self, name, tmp_path, monkeypatch, capsys):
        (tmp_path / "paper_figures" / "data").mkdir(parents=True)
        (tmp_path / "paper_figures" / "__init__.py").touch()
        monkeypatch.setattr(command, "_ROOT", tmp_path)
        assert WRITERS[name][0].main([]) == 0
        assert not list((tmp_path / "paper_figures" / "data").iterdir())
        assert sorted(p.suffix for p in (tmp_path / "paper_figures" / "out").iterdir()) == [".csv", ".json"]

    def test_a_full_disk_leaves_table_and_sidecar_as_they_were(self, name, tmp_path, capsys):
        module, _, option, _ = WRITERS[name]
        (tmp_path / "t.csv").write_text("old")
        (tmp_path / "t.json").write_text("old")
        with file_size_limit(60):  # more than the table, less than the sidecar
            line = refused(module, [*option, tmp_path / "t.csv"], capsys)
        assert line == f"[Errno 27] File too large: '{tmp_path / 't.json'}'"
        assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"t.csv": "old", "t.json": "old"}


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_table_is_not_written(name, tmp_path, monkeypatch, capsys):
    module, what, option, _ = WRITERS[name]

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, what, interrupted)
    assert module.main([*option, str(tmp_path / "t.csv")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sizes", "0"], "argument --sizes: must be a whole number of at least 15, got '0'"),
        (["--sizes", "500", "14"], "argument --sizes: must be a whole number of at least 15, got '14'"),
        (["--n-datasets", "0"], "argument --n-datasets: must be a whole number of at least 1, got '0'"),
        (["--seed", "-1"], "argument --seed: must be a whole number of at least 0, got '-1'"),
    ],
)
def test_numbers_of_the_coverage_table(arguments, reason, capsys):
    assert refused(coverage, arguments, capsys) == reason


class TestAudit:
    @pytest.fixture(autouse=True)
    def no_model_is_loaded(self, monkeypatch):
        monkeypatch.setattr(language_models, "load_model", lambda *_, **__: pytest.fail("a model is loaded"))

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--label-smoothing", "2"], "label_smoothing must be in (0, 1), got "),
            (["--batch-size", "0"], "batch_size must be a whole number of at least 1, got 0."),
            (["--max-tokens", "0"], "max_tokens must be a whole number of at least 1, got 0."),
            (["--max-length", "1"], "max_length must be a whole number of at least 2"),
            (["--skip", "-1"], "skip must be a whole number of at least 0, got -1."),
        ],
    )
    def test_numbers_are_checked_first(self, arguments, reason, tmp_path, capsys):
        line = refused(audit, ["nowhere", "--text", "nowhere", "--out", tmp_path / "a.csv", *arguments], capsys)
        assert line.startswith(reason)

    @pytest.mark.parametrize("taken", ["a.csv", "a.json", "a.png"])
    def test_all_three_files_are_checked_first(self, taken, tmp_path, capsys):
        (tmp_path / taken).mkdir()
        line = refused(audit, ["nowhere", "--text", "nowhere", "--out", tmp_path / "a.csv"], capsys)
        assert line == f"[Errno 21] Is a directory: '{tmp_path / taken}'"

    def test_a_file_in_the_way_is_found_first(self, in_the_way, capsys):
        line = refused(audit, ["nowhere", "--text", "nowhere", "--out", in_the_way / "a.csv"], capsys)
        assert str(in_the_way / "a.csv") in line

    @pytest.mark.parametrize("limit", [10, 2000])
    def test_a_full_disk_leaves_no_part_of_it(self, limit, tmp_path, monkeypatch, capsys):
        model = SimpleNamespace(model=None, tokenizer=None, name="m", revision="", quantisation="", licence="")
        found = SimpleNamespace(table=pd.DataFrame({"x": [1.0]}), verdict="", recommendation="")
        monkeypatch.setattr(language_models, "load_model", lambda *_, **__: model)
        monkeypatch.setattr(analysis.audit._audit, "audit_model", lambda *_, **__: found)
        monkeypatch.setattr(audit, "_figure", lambda _: bytes(10**5))
        text, out = tmp_path / "text.txt", tmp_path / "out"
        text.write_text("Words.")
        out.mkdir()
        with file_size_limit(limit):
            line = refused(audit, ["model", "--text", text, "--out", out / "a.csv"], capsys)
        assert line.startswith("[Errno 27] File too large: ")
        assert not list(out.iterdir())
        assert audit.main(["model", "--text", str(text), "--out", str(out / "a.csv")]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["a.csv", "a.json", "a.png"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ((), "{}, which is empty."),
        (("notes.txt",), "{}, which holds no config.json."),
        (("m.gguf",), "{}, which holds no config.json; give the file itself, {}/m.gguf."),
    ],
)
def test_a_folder_without_a_model_is_answered_with_what_it_lacks(files, reason, tmp_path, capsys):
    pytest.importorskip("transformers")
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    (tmp_path / "text.txt").write_text("Words.")
    line = refused(audit, [folder, "--text", tmp_path / "text.txt", "--out", tmp_path / "a.csv"], capsys)
    assert line == "model must be a folder with a config.json and safetensors, got " + reason.format(folder, folder)


class TestInstruction:
    @pytest.mark.parametrize("option", [["--workers", "0"], ["--max-minutes", "0"], ["--shard", "3/2"]])
    def test_numbers(self, option, capsys):
        assert f"argument {option[0]}: must be " in refused(instruction, ["run", "m", "q", *option], capsys)

    @pytest.mark.parametrize(
        "content", [b"", b"x\n", b"x\n1\n", b"\x1f\x8b"], ids=["empty", "no rows", "another", "binary"]
    )
    def test_what_is_no_table_has_no_verdicts(self, content, tmp_path, capsys):
        (tmp_path / "t.csv").write_bytes(content)
        line = refused(instruction, ["verdicts", tmp_path / "t.csv", tmp_path / "v.csv"], capsys)
        assert line.startswith(f"{tmp_path / 't.csv'} is no ")
        assert not (tmp_path / "v.csv").exists()

    def test_files_that_are_not_there_or_cannot_be_written(self, tmp_path, in_the_way, monkeypatch, capsys):
        assert "No such file" in refused(instruction, ["verdicts", tmp_path / "no.csv", tmp_path / "v.csv"], capsys)
        assert "No such file" in refused(instruction, ["plan", "m.gguf", tmp_path / "no.json"], capsys)
        monkeypatch.setattr(instruction, "build_questions", lambda: pytest.fail("questions are built"))
        assert str(in_the_way) in refused(instruction, ["questions", in_the_way / "q.json"], capsys)

    def test_questions_that_are_none(self, tmp_path, capsys):
        (tmp_path / "q.json").write_text("{}")
        assert "must be a file of questions" in refused(instruction, ["plan", "m.gguf", tmp_path / "q.json"], capsys)


class TestFigures:
    ARGUMENTS = ("--preset", "quick", "--only", "samples", "--only", "tuning")

    def test_an_output_folder_that_cannot_be_written_is_found_first(self, in_the_way, read_only, monkeypatch, capsys):
        monkeypatch.setattr(figures, "_draw", lambda *_: pytest.fail("something is drawn"))
        for out in (in_the_way, in_the_way / "deeper", read_only):
            line = refused(figures, [*self.ARGUMENTS, "--out", out], capsys)
            assert line.startswith("[Errno ")
            assert str(out) in line
        assert in_the_way.read_text() == "mine"

    def test_a_full_disk_leaves_no_part_of_a_figure(self, tmp_path, capsys):
        with file_size_limit(5000):
            line = refused(figures, [*self.ARGUMENTS, "--out", tmp_path / "out"], capsys)
        assert line.startswith(f"[Errno 27] File too large: '{tmp_path / 'out'}/samples.")
        assert not list((tmp_path / "out").iterdir())

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:-9], "is no whole table: "),
            (b"", "is no whole table: "),
            (gzip.compress(b"a,b\n1,2\n"), "a table has no column "),
        ],
        ids=["cut", "empty", "another"],
    )
    def test_a_damaged_table_costs_its_figure_alone(self, content, reason, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(tables, "DATA", tmp_path / "data")
        shutil.copytree(Path(figures.__file__).parent / "data" / "quick", tmp_path / "data" / "quick")
        for name in ("S4.csv", "S4.json"):
            (tmp_path / "data" / "quick" / name).unlink()
        (tmp_path / "data" / "quick" / "S4.csv.gz").write_bytes(content)
        assert figures.main([*self.ARGUMENTS, "--out", str(tmp_path / "out")]) == 1
        out, err = capsys.readouterr()
        assert err.startswith("error: samples was not drawn: ")
        assert reason in err
        assert len(err.splitlines()) == 1
        assert "tuning.pdf" in out


@pytest.mark.parametrize(
    "name", ["analysis.__main__", "analysis.study.__main__", "paper_figures.__main__", "analysis.instruction"]
)
def test_what_no_option_is_is_refused(name, capsys):
    assert "unrecognized arguments" in refused(import_module(name), ["--nothing"], capsys) or name in (
        "analysis.study.__main__",
        "analysis.instruction",  # which ask for their own command first
    )
