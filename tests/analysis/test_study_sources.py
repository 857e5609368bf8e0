"""Every committed file says where it comes from, in one schema, and something reads it."""

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from analysis.command import committed_folder
from analysis.lab.provenance import SCHEMA, check_schema
from analysis.lab.records import configs_hash
from analysis.lab.registry import EXPERIMENTS, PRESETS, experiment
from analysis.lab.tables import find_table
from analysis.study.__main__ import main
from analysis.study.real_tuning.tuning import configs as tunings
from analysis.study.sources import sources

DATA = committed_folder()
SIDECARS = sorted(DATA.rglob("*.json"))


@pytest.fixture(scope="module")
def known():
    return {source.file: source for source in sources()}


def test_every_committed_file_is_in_the_map_with_its_command_and_readers(known, capsys):
    files = {str(path.relative_to(DATA)) for path in DATA.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert set(known) == files
    assert [name for name, source in known.items() if not source.readers] == []
    assert all(find_spec(source.command.split()[2]) for source in known.values())
    assert main(["sources"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in files)


@pytest.mark.parametrize("path", SIDECARS, ids=[str(path.relative_to(DATA)) for path in SIDECARS])
def test_every_sidecar_has_the_schema_and_a_table(path):
    made = json.loads(path.read_text(encoding="utf-8"))
    assert list(made)[: len(SCHEMA)] == list(SCHEMA)
    check_schema(made)
    assert re.match(r"python -m [\w.]+", made["command"])
    for commit in made["commit"] if isinstance(made["commit"], list) else [made["commit"]]:
        assert commit is None or re.fullmatch(r"[0-9a-f]{40}\+?", commit)
    table = find_table(path.parent, path.stem)
    assert table is not None
    if "table" in made:
        shape, read = made["table"], pd.read_csv(table)
        assert (shape["file"], shape["rows"], shape["columns"]) == (table.name, len(read), list(read))


def test_every_sidecar_names_commits_of_this_history():
    """So that the code which made a table can be looked up; a commit of a branch that was cut away cannot."""

    def git(*arguments):
        done = subprocess.run(["git", "-C", str(DATA), *arguments], capture_output=True, text=True, timeout=60)
        return done.stdout.split() if done.returncode == 0 else None

    if git("rev-parse", "--is-shallow-repository") != ["false"] or not git("ls-files", "S1.json"):
        pytest.skip("no whole history of these files")
    history = set(git("rev-list", "HEAD") or ())
    unknown = []
    for path in SIDECARS:
        commits = json.loads(path.read_text(encoding="utf-8"))["commit"] or []
        named = [commits] if isinstance(commits, str) else commits
        unknown += [f"{path.relative_to(DATA)}: {one}" for one in named if one.removesuffix("+") not in history]
    assert unknown == []


@pytest.mark.parametrize("preset", PRESETS)
def test_the_rows_of_the_committed_tables_are_those_of_the_grids(preset):
    """A changed key would orphan 5,883 committed rows."""
    folder = DATA if preset == "full" else DATA / preset
    for name in EXPERIMENTS:
        if preset == "full" and name in ("S9", "S11", "S12") and find_table(folder, name) is None:  # not run yet
            continue
        made = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert made["config"]["hash"] == configs_hash(experiment(name).configs(preset)), name
    if preset == "full":
        made = json.loads((DATA / "instruction_full.json").read_text(encoding="utf-8"))
        grid = tunings("SmolLM2-135M-Instruct.Q4_1.gguf", made["source"]["questions"]["digest"], "full")
        assert made["config"]["hash"] == configs_hash(grid)


def test_the_packed_rows_are_those_of_the_tables():
    """The bundle holds the keys of every committed full table, and none of a row that was measured in an earlier way."""
    import lzma

    from analysis.lab.tables import read_table

    packed = {name: set() for name in EXPERIMENTS}
    with lzma.open(DATA / "full_rows.xz", "rt", encoding="utf-8") as lines:
        for line in lines:
            found = re.search(r'"experiment": "(S\d+)".*"key": "([0-9a-f]{20})"', line)
            assert found
            packed[found[1]].add(found[2])
            version = re.search(r'"measurement_version": (\d+)', line)
            assert int(version[1] if version else 1) == experiment(found[1]).measurement_version, found
    for name, keys in packed.items():
        if name in ("S9", "S11", "S12") and find_table(DATA, name) is None:  # not run yet
            continue
        table = read_table(Path(find_table(DATA, name) or ""))
        assert set(table["key"]) <= keys, name
